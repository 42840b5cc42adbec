"""EM monitor: how good θ is on fixed problems, and how far Q is from θ's posterior (BRiTE eq. 3.3, Lemma 3.1).

K rationales per problem from Q, with w = P_θ(z|x)·P_θ(y*|x,z) / Q(z|x), give two estimates of log P_θ(y*|x): the ELBO
E_Q[log w], and the log of the mean of w, a K-sample bound whose expectation rises to log P_θ(y*|x) with K. The gap between
them is KL(Q‖posterior); an E-step closes it, an M-step raises the likelihood.

Unfinished rationales have no answer: P_θ(y*|x,z) = 0. The likelihood is therefore that of finishing within the limit and being
right, the posterior is over finished rationales, and the ELBO is that of Q given that it finishes,
E_Q[log w | finished] + log Q(finished), so that the gap remains a divergence and stays finite.

Notation of shapes: n problems, K rationales of each. All values are in nats, float64.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp
from torch import nn

from brite_lib import costs
from brite_lib.errors import InputError
from brite_lib.likelihood import score
from brite_lib.params import PsiParams, ThetaParams
from brite_lib.problems import has_split, load_problems
from brite_lib.rollouts import sample, sample_seed
from brite_lib.template import RationaleTemplate

Array = NDArray[np.float64]
LOW_ESS = 0.2  # of K: below it a few rationales carry the estimate
MANY = 0.1  # of the problems: from here on a low effective sample size is worth a warning


class Estimate(NamedTuple):
    """(n,) values with the standard errors of their K draws; nan where they are unknown."""

    value: Array
    se: Array


@dataclass(frozen=True)
class Draws:
    """K rationales of each of n problems, sampled from Q; lists of n·K rows, the K of a problem in consecutive ones."""

    prompts: list[list[int]]
    rationales: list[list[int]]
    answers: list[list[int]]  # y* with its end token; empty behind an unfinished rationale
    log_q: Array  # (n, K)
    finished: NDArray[np.bool_]  # (n, K)


def elbo(log_joint: ArrayLike, log_q: ArrayLike) -> Estimate:
    """E_Q[log P_θ(y*|x,z) + log P_θ(z|x) − log Q(z|x)] per problem, Q given that it finishes (see above).

    Args:
        log_joint: (n, K) log P_θ(z|x) + log P_θ(y*|x,z) of draws from Q, -inf for unfinished ones.
        log_q: (n, K) log Q(z|x).

    Returns:
        the mean over the finished draws, plus the log of their share; nan for a problem without any.

    Raises:
        InputError: for other shapes, nan or inf.
    """
    log_joint, log_q = _checked(log_joint, log_q)
    finished = np.isfinite(log_joint)
    count = finished.sum(1)
    log_w = np.where(finished, log_joint - log_q, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):  # no finished draw, or only one: nan says so
        mean = log_w.sum(1) / count
        variance = np.where(finished, (log_w - mean[:, None]) ** 2, 0.0).sum(1) / (count - 1)
        share = count / log_q.shape[1]
        # The delta method for log(share); the mean does not depend on how many finished.
        return Estimate(mean + np.log(share), np.where(count > 1, np.sqrt((variance + 1 - share) / count), np.nan))


def marginal_log_likelihood(log_joint: ArrayLike, log_q: ArrayLike) -> tuple[Estimate, Array]:
    """Importance-weighted log P_θ(y*|x) per problem from K draws of Q: log-mean-exp of log w, in expectation a lower bound.

    Args:
        log_joint: (n, K) as in :func:`elbo`.
        log_q: (n, K) log Q(z|x).

    Returns:
        the estimates (nan for a problem without a finished draw), and (n,) effective sample sizes (Σw)²/Σw² in [0, K].

    Raises:
        InputError: for other shapes, nan or inf.
    """
    log_joint, log_q = _checked(log_joint, log_q)
    samples = log_q.shape[1]
    log_w = log_joint - log_q
    dead = np.isneginf(log_w).all(1)
    log_w = np.where(dead[:, None], 0.0, log_w)
    ess = np.exp(2 * logsumexp(log_w, axis=1) - logsumexp(2 * log_w, axis=1))
    value = logsumexp(log_w, axis=1) - np.log(samples)
    with np.errstate(invalid="ignore", divide="ignore"):  # one draw has no spread: nan
        se = np.sqrt(np.maximum(1 / ess - 1 / samples, 0) * samples / np.float64(samples - 1))  # the delta method: sd(w) / (√K · mean w)
    return Estimate(np.where(dead, np.nan, value), np.where(dead, np.nan, se)), np.where(dead, 0.0, ess)


def _checked(log_joint: ArrayLike, log_q: ArrayLike) -> tuple[Array, Array]:
    log_joint, log_q = np.asarray(log_joint, dtype=np.float64), np.asarray(log_q, dtype=np.float64)
    if log_joint.ndim != 2 or log_joint.shape != log_q.shape:
        raise InputError(f"log_joint and log_q must both have shape (n, K), found {log_joint.shape} and {log_q.shape}")
    if not np.isfinite(log_q).all() or np.isnan(log_joint).any() or np.isposinf(log_joint).any():
        raise InputError("log_q must be finite, and log_joint finite or -inf (unfinished), found nan or inf")
    return log_joint, log_q


def draw(
    q: nn.Module,
    problems: Sequence[dict[str, Any]],
    template: RationaleTemplate,
    samples: int = 64,
    seed: int = 0,
    max_rationale_tokens: int = 32,
    batch_size: int = 512,
) -> Draws:
    """Sample K = ``samples`` rationales per problem from Q at temperature 1, with log Q(z|x); θ itself may be Q.

    Every (problem, k) has a seed of its own: the same model gives the same draws whatever else is monitored.
    """
    if samples < 2:
        raise InputError("monitor_samples: must be at least 2, or there is no standard error")
    problems = [dict(problem) for problem in problems]
    prompts = [ids for problem in problems for ids in [template.prompt_ids(problem["question"])] * samples]
    seeds = [sample_seed(seed, "em", problem["id"], k) for problem in problems for k in range(samples)]
    ids = sample(q, template, prompts, seeds, 1.0, max_rationale_tokens, True, batch_size, desc="EM monitor: sampling from Q")
    completions = [template.split(row, max_rationale_tokens) for row in ids]
    gold = [answer for problem in problems for answer in [template.answer_ids(problem["answer"])] * samples]
    rationales = [completion.rationale_ids for completion in completions]
    scores = score(q, prompts, rationales, [[]] * len(rationales), batch_size, desc="EM monitor: scoring under Q")
    log_q = [values.sum().item() for values in scores.rationale]
    answers = [answer if completion.finished else [] for answer, completion in zip(gold, completions, strict=True)]
    finished = np.array([completion.finished for completion in completions]).reshape(-1, samples)
    return Draws(prompts, rationales, answers, np.array(log_q).reshape(-1, samples), finished)


def monitor(theta: nn.Module, draws: Draws, batch_size: int = 512) -> dict[str, float]:
    """The metrics of (θ, Q) for a stage record; prints a warning where importance sampling can't be relied on.

    Args:
        theta: θ, frozen. The draws were scored under Q before, so θ may be Q's model with its adapter off.
        draws: from Q.
        batch_size: sequences per forward pass.

    Returns:
        ``elbo``, ``log_marginal``, ``gap`` (their difference) and ``kl`` (KL(Q‖P_θ) over all draws), means over problems in
        nats; ``elbo_se`` and ``log_marginal_se``, standard errors over problems; ``elbo_sampling_se`` and
        ``log_marginal_sampling_se``, those of the K draws alone, for the comparison of rounds on the same problems; ``ess``
        (median effective sample size), ``low_ess`` (share of problems below 20 % of K), ``finished`` (share of draws),
        ``unresolved`` (problems without a finished draw, which the first three means leave out), ``problems``, ``samples``,
        ``tokens`` (sampled; no cost of the method).
    """
    log_prior, log_answer = score_joint(theta, draws, batch_size)
    log_joint = np.where(draws.finished, log_prior + log_answer, -np.inf)
    bound, (likelihood, ess) = elbo(log_joint, draws.log_q), marginal_log_likelihood(log_joint, draws.log_q)
    known = ess > 0
    low = float(np.mean(ess < LOW_ESS * draws.log_q.shape[1]))
    if low > MANY:
        print(
            f"warning: {low:.0%} of the problems have an effective sample size below {LOW_ESS:.0%} of K = {draws.log_q.shape[1]}: "
            "their log-likelihood is underestimated; raise monitor_samples, or take a Q that is nearer to the posterior"
        )
    return {
        **_mean("elbo", bound, known),
        **_mean("log_marginal", likelihood, known),
        "gap": _average((likelihood.value - bound.value)[known]),
        "kl": float((draws.log_q - log_prior).mean()),
        "ess": float(np.median(ess)),
        "low_ess": low,
        "finished": float(draws.finished.mean()),
        "unresolved": int((~known).sum()),
        "problems": len(ess),
        "samples": draws.log_q.shape[1],
        "tokens": sum(map(len, draws.rationales)),
    }


def score_joint(theta: nn.Module, draws: Draws, batch_size: int = 512) -> tuple[Array, Array]:
    """log P_θ(z|x) and log P_θ(y*|x,z) of the draws, (n, K) each; the latter is 0 behind an unfinished rationale."""
    scores = score(theta, draws.prompts, draws.rationales, draws.answers, batch_size, desc="EM monitor: scoring under θ")
    prior, answer = ([values.sum().item() for values in part] for part in scores)
    return np.array(prior).reshape(draws.log_q.shape), np.array(answer).reshape(draws.log_q.shape)


@costs.not_counted()
def monitored(
    params: PsiParams | ThetaParams, template: RationaleTemplate, q: nn.Module, theta: AbstractContextManager[nn.Module] | None = None
) -> dict[str, float]:
    """:func:`monitor` on a stage's held-out problems as ``em/…`` metrics; none if ``monitor_problems`` is 0.

    Args:
        theta: gives θ, entered only after the draws are scored under Q (both may be one model with its adapter on and off);
            None: Q itself.
    """
    if not params.monitor_problems:
        return {}
    problems = held_out(params)
    draws = draw(q, problems, template, params.monitor_samples, params.seed, params.max_rationale_tokens, params.batch_size)
    with theta or nullcontext(q) as frozen:
        return {f"em/{name}": value for name, value in monitor(frozen, draws, params.batch_size).items()}


def held_out(params: PsiParams | ThetaParams) -> list[dict[str, Any]]:
    """The monitor's problems: the head of the validation split, or of the training problems where the data has none; says which.

    Raises:
        InputError: one sentence, if the split is there but cannot be read.
    """
    has_validation = has_split(params.data, "validation")
    split = "validation" if has_validation else params.split
    problems = load_problems(params.data, split, params.monitor_problems)
    reason = "" if has_validation else f", as {params.data} has no validation split"
    print(f"EM monitor: {params.monitor_samples} rationales for each of {len(problems)} {split} problems{reason}")
    return problems.to_list()


def _mean(name: str, estimate: Estimate, known: NDArray[np.bool_]) -> dict[str, float]:
    value, se = estimate.value[known], estimate.se[known]
    over_problems = float(value.std(ddof=1) / np.sqrt(len(value))) if len(value) > 1 else np.nan
    sampling = float(np.sqrt((se**2).sum()) / len(se)) if len(se) else np.nan
    return {name: _average(value), f"{name}_se": over_problems, f"{name}_sampling_se": sampling}


def _average(values: Array) -> float:
    return float(values.mean()) if len(values) else np.nan
