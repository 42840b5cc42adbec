"""A toy world in which thinking is right half of the time and nobody can tell when: the limits of the method.

The embedded chains again, but each has one of two *readings*: it starts at the digit as written, or at five more. Which
one is right hangs on a hash of the question. A model can only think in either reading, each as fluently as the other, so
its confident thinking is wrong in half of the problems, for a reason that neither more training nor more attention to x
mends. Guessing is right in one of ten. (docs/limits.md and notebooks/20_limits.ipynb.)
"""

import hashlib
import math
import random

from datasets import Dataset

from brite_lib.problems import toy
from brite_lib.problems.problem import Problem
from brite_lib.template import RationaleTemplate

LEVEL = "easy"
# What the base is made to imitate: it thinks in half of the cases, in either reading, else it skips or guesses.
SHARES = {"as written": 0.25, "five more": 0.25, "skipping": 0.25, "guessing": 0.25}


def read(question: str, reading: str) -> str:
    """The question as a reading takes it: ``as written``, or ``five more`` at its first digit (modulo 10)."""
    return f"{(int(question[0]) + 5) % 10}{question[1:]}" if reading == "five more" else question


def right_reading(question: str) -> str:
    """The reading that this world rewards, by a hash of the question: as good as a coin."""
    return "five more" if hashlib.sha256(f"reading of {question}".encode()).digest()[0] % 2 else "as written"


def two_reading_problems(split: str, limit: int = 1000) -> list[Problem]:
    """The toy's easy problems of a split with this world's answers; the rationale is the one of the right reading."""
    problems = toy.toy_problems(LEVEL, split, limit, "careful")
    as_read = [read(problem.question, right_reading(problem.question)) for problem in problems]
    return [
        problem.model_copy(update={"answer": toy.answer_of(question), "rationale": toy.write_rationale(question, "careful")})
        for problem, question in zip(problems, as_read, strict=True)
    ]


def training_sequences(template: RationaleTemplate, count: int, seed: int) -> Dataset:
    """``count`` sequences (``input_ids``, ``labels``) that teach a base model the mixture :data:`SHARES`.

    A thinker's answer follows from its reading, right or wrong; a skipper writes the total that is right in this world,
    which a model cannot learn; in 5 % of the sequences the answer is replaced at random, as in the embedded base.
    """
    rng = random.Random(f"two-readings-{seed}")
    rows = []
    while len(rows) < count:
        question = toy.random_question(rng, LEVEL)
        if toy.split_of(question) != "train":
            continue
        style = rng.choices(list(SHARES), SHARES.values())[0]
        thinks = style in ("as written", "five more")
        as_read = read(question, style if thinks else right_reading(question))
        rationale = toy.write_rationale(as_read, "careful" if thinks else style)
        answer = rng.choice("0123456789") if rng.random() < toy.ANSWER_NOISE else toy.answer_of(as_read)
        prompt = template.prompt_ids(question)
        completion = template.rationale_ids(rationale) + template.answer_ids(answer)
        rows.append({"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion})
    return Dataset.from_list(rows)


def expected_shares(prior: dict[str, float], log_prob: dict[str, list[float]]) -> tuple[dict[str, float], dict[str, float]]:
    """Shares of the styles in the exact posterior, and in the best Q that sees x only and cannot tell right from wrong.

    The posterior weighs a style by the *mean of the likelihood* of y*, a Q without the answer by the *exponential of the
    mean log-likelihood*, the optimum of E_Q[log P(y*|x,z)] − KL(Q‖P) over mixtures of styles. Jensen's inequality is the
    whole difference, and confident wrong thinking is where it is large.

    Args:
        prior: share of each style under θ.
        log_prob: for each style the values of log P(y*|x, z; θ), in nats, over its samples.

    Returns:
        (posterior, mixture), each summing to 1.
    """
    weights = (
        {style: share * sum(map(math.exp, log_prob[style])) / len(log_prob[style]) for style, share in prior.items()},
        {style: share * math.exp(sum(log_prob[style]) / len(log_prob[style])) for style, share in prior.items()},
    )
    posterior, mixture = ({style: value / sum(weight.values()) for style, value in weight.items()} for weight in weights)
    return posterior, mixture
