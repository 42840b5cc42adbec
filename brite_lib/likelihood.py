"""Token log-probabilities of rationales and answers, in one forward pass and without the (B, T, V) logits.

Notation of shapes: B sequences, T tokens after padding, D hidden size, V vocabulary, N selected tokens.
``log P(z|x)`` and ``log P(y|x,z)`` are the two factors of BRiTE eq. (3.1).
"""

import weakref
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from brite_lib import costs
from brite_lib.errors import InputError
from brite_lib.progress import progress

MAX_LOGITS = 2**25  # numbers in one chunk of logits: 128 MiB of float32, whatever B, T and V are


class Scores(NamedTuple):
    """Per-token natural-log probabilities; item i has the length of rationale i or answer i, float32 on the CPU."""

    rationale: list[Tensor]
    answer: list[Tensor]


class Padded(NamedTuple):
    """A padded batch: three (B, T) tensors."""

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor


class Batch(NamedTuple):
    """A padded batch with the tokens to score: ``rows``, ``columns`` say where a token stands, ``targets`` what it is; (N,) each."""

    padded: Padded
    rows: Tensor
    columns: Tensor
    targets: Tensor


def pad_sequences(
    sequences: Sequence[Sequence[int]], device: torch.device, side: Literal["left", "right"] = "right", pad_id: int = 0
) -> Padded:
    """Pad token ids to (B, T). The mask comes from the lengths, so a sampled pad or eos token is a token like any other."""
    length = max(len(sequence) for sequence in sequences)
    ids = torch.full((len(sequences), length), pad_id, dtype=torch.long)
    mask = torch.zeros((len(sequences), length), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        place = slice(0, len(sequence)) if side == "right" else slice(length - len(sequence), length)
        ids[row, place] = torch.tensor(sequence, dtype=torch.long)
        mask[row, place] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return Padded(ids.to(device), mask.to(device), positions.to(device))


def make_batch(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], device: torch.device, side: Literal["left", "right"] = "right"
) -> Batch:
    """Prompts and completions as one batch in which every completion token is to be scored, in order."""
    padded = pad_sequences([[*p, *c] for p, c in zip(prompts, completions, strict=True)], device, side)
    total = padded.input_ids.shape[1]
    rows, columns = [], []
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        start = len(prompt) if side == "right" else total - len(completion)
        rows += [row] * len(completion)
        columns += range(start, start + len(completion))
    row_index, column_index = (torch.tensor(index, dtype=torch.long, device=device) for index in (rows, columns))
    return Batch(padded, row_index, column_index, padded.input_ids[row_index, column_index])


def trunk_and_head(model: nn.Module) -> tuple[nn.Module, nn.Module, float | None]:
    """The decoder that gives (B, T, D), the layer that makes logits of it, and the soft cap on them (Gemma-2).

    Raises:
        InputError: for an architecture whose logits are anything else (checked once per model, on four tokens).
    """
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    trunk, head = causal.get_decoder(), causal.get_output_embeddings()
    cap = getattr(causal.config.get_text_config(), "final_logit_softcapping", None)
    if causal not in _checked:
        ids = torch.arange(4, device=head.weight.device)[None] % head.weight.shape[0]
        with torch.no_grad():
            difference = causal(input_ids=ids).logits.float() - _logits(trunk(input_ids=ids).last_hidden_state, head, cap)
        if difference.abs().max() > (1e-3 if head.weight.dtype == torch.float32 else 0.25):
            raise InputError(f"model: {type(causal).__name__} scales its logits in a way that likelihood.py does not know")
        _checked.add(causal)
    return trunk, head, cap


_checked: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


def token_log_probs(model: nn.Module, batch: Batch, entropy: bool = False) -> tuple[Tensor, Tensor | None, Tensor]:
    """Log-probabilities of a batch's target tokens.

    Returns:
        log_prob (N,) float32; entropy (N,) of the predictive distributions, without gradient, or None; and the
        hidden states (N, D) that predict the targets. Gradients flow unless torch.no_grad is on.
    """
    trunk, head, cap = trunk_and_head(model)
    hidden = trunk(**batch.padded._asdict(), use_cache=False).last_hidden_state
    hidden = hidden[batch.rows, batch.columns - 1]  # the state before a token predicts it
    chunk = max(1, MAX_LOGITS // head.weight.shape[0])
    parts = [
        _select(hidden[i : i + chunk], batch.targets[i : i + chunk], head, cap, entropy, recompute=len(hidden) > chunk)
        for i in range(0, max(len(hidden), 1), chunk)  # nothing to score is a chunk too: the head is used, so it has a gradient
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts]) if entropy else None, hidden


def score(
    model: nn.Module,
    prompt_ids: Sequence[Sequence[int]],
    rationale_ids: Sequence[Sequence[int]],
    answer_ids: Sequence[Sequence[int]],
    batch_size: int = 64,
    padding_side: Literal["left", "right"] = "right",
    desc: str = "",
) -> Scores:
    """Per-token log P(z|x) and log P(y|x,z) of lists of token ids, without gradients.

    Each sequence is x·z·y as given: nothing is re-tokenised, every token of z and y (its end token included) is
    scored once, and the last token of z belongs to z. Empty rationales or answers give empty tensors.

    Args:
        desc: progress is shown under this name; empty: none is.

    Raises:
        InputError: for lists of different lengths, or an empty prompt, whose first completion token nothing could predict.
    """
    if len({len(prompt_ids), len(rationale_ids), len(answer_ids)}) > 1:
        found = f"{len(prompt_ids)}, {len(rationale_ids)} and {len(answer_ids)}"
        raise InputError(f"prompt_ids, rationale_ids and answer_ids must have a row per sequence each, found {found} rows")
    for row, prompt in enumerate(prompt_ids, start=1):
        if len(prompt) == 0:
            raise InputError(f"prompt_ids: row {row} is empty, so the first token after it has no probability")
    completions = [[*z, *y] for z, y in zip(rationale_ids, answer_ids, strict=True)]
    device = next(model.parameters()).device
    flat: list[Tensor] = [torch.empty(0)] * len(completions)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        costs.add_pass(model, prompt_ids, completions)
        for rows in length_sorted(list(zip(prompt_ids, completions, strict=True)), batch_size, desc):
            batch = make_batch([prompt_ids[i] for i in rows], [completions[i] for i in rows], device, padding_side)
            log_prob = token_log_probs(model, batch)[0].cpu()
            for i, values in zip(rows, log_prob.split([len(completions[i]) for i in rows]), strict=True):
                flat[i] = values
    model.train(was_training)
    return Scores(
        [values[: len(z)] for values, z in zip(flat, rationale_ids, strict=True)],
        [values[len(z) :] for values, z in zip(flat, rationale_ids, strict=True)],
    )


def length_sorted(sequences: Sequence[tuple[Sequence[int], ...]], batch_size: int, desc: str = "") -> Iterator[list[int]]:
    """Row numbers in batches of sequences of similar total length, so that little is padded; ``desc`` names their progress, if any."""
    order = sorted(range(len(sequences)), key=lambda i: sum(len(part) for part in sequences[i]))
    starts = range(0, len(order), batch_size)
    for start in progress(starts, desc=desc) if desc else starts:
        yield order[start : start + batch_size]


def _logits(hidden: Tensor, head: nn.Module, cap: float | None) -> Tensor:
    logits = head(hidden).float()
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _select(
    hidden: Tensor, targets: Tensor, head: nn.Module, cap: float | None, entropy: bool, recompute: bool
) -> tuple[Tensor, Tensor | None]:
    if recompute and torch.is_grad_enabled():  # with several chunks, keep none of their logits for the backward pass
        log_prob = checkpoint(_log_prob, hidden, targets, head, cap, use_reentrant=False)
    else:
        log_prob = _log_prob(hidden, targets, head, cap)
    return log_prob, _entropy(hidden, head, cap) if entropy else None


def _log_prob(hidden: Tensor, targets: Tensor, head: nn.Module, cap: float | None) -> Tensor:
    logits = _logits(hidden, head, cap)
    return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)


@torch.no_grad()
def _entropy(hidden: Tensor, head: nn.Module, cap: float | None) -> Tensor:
    log_probs = _logits(hidden, head, cap).log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)
