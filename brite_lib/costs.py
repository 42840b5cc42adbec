"""What stages compute, in model FLOPs: one formula, for counting while models run and for the forecast before (forecast.py).

*Model* FLOPs are those that the mathematics needs, multiplications and additions counted apart: no padding, no recomputation, no
elementwise operations. A token that passes a weight matrix of n numbers costs 2n; its attention costs 4 numbers × layers × heads ×
head size per key, of which the t-th token has t. A backward pass costs another 2n for the gradient of its inputs and 2n for that of
the weights, if they are trained, and twice the attention: three forward passes for full training, about two with LoRA (Kaplan et
al. 2020, section 2.1; Chowdhery et al. 2022, appendix B, whose attention is not causal). Embedding look-ups cost nothing; the
output layer counts only for tokens whose logits are needed. All experts of a mixture count, so there it is an upper bound.

:func:`brite_lib.likelihood.score`, :func:`brite_lib.rollouts.sample` and the trainers report here; a stage's record holds what
its process has spent (:mod:`brite_lib.records`). Nothing here imports torch before it is called.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class ModelCost:
    """The sizes of a causal language model that its FLOPs depend on.

    Attributes:
        trunk: weights in the matrices of the decoder; adapters count even where they are switched off.
        trunk_trained: of them, those that are trained.
        head: weights of the output layer, and of a critic beside it.
        head_trained: of them, those that are trained.
        attention: layers × query heads × head size.
    """

    trunk: int
    trunk_trained: int
    head: int
    head_trained: int
    attention: int

    @classmethod
    def of(cls, model: "nn.Module", critic: "nn.Module | None" = None) -> "ModelCost":
        """Read off a model with a language head (with PEFT adapters or without), be it on the meta device."""
        from torch import nn

        causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        config, output = causal.config.get_text_config(), causal.get_output_embeddings()
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        head = {id(p): p for part in (output, critic) if part is not None for p in part.parameters() if p.ndim > 1}
        look_up = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
        trunk = [p for p in model.parameters() if p.ndim > 1 and id(p) not in look_up and id(p) not in head]
        return cls(
            *(sum(p.numel() for p in part if chosen(p)) for part in (trunk, head.values()) for chosen in (lambda p: True, _is_trained)),
            attention=config.num_hidden_layers * config.num_attention_heads * size,
        )

    def forward(self, lengths: Sequence[int], logits: int) -> int:
        """FLOPs of one forward pass.

        Args:
            lengths: tokens of each sequence.
            logits: tokens, of all sequences together, whose logits are needed.
        """
        return 2 * (self.trunk * int(np.sum(lengths)) + self.head * logits) + self._attention(lengths)

    def training(self, lengths: Sequence[int], logits: int) -> int:
        """FLOPs of a forward and a backward pass, as in :meth:`forward`."""
        weights = (2 * self.trunk + self.trunk_trained) * int(np.sum(lengths)) + (2 * self.head + self.head_trained) * logits
        return 2 * weights + 3 * self._attention(lengths)

    def sampling(self, prompts: Sequence[int], sampled: Sequence[int]) -> int:
        """FLOPs of decoding with a cache: every token is read once, and the last one sampled is not read at all.

        Args:
            prompts: tokens of each prompt; k samples of one prompt read it k times.
            sampled: tokens sampled behind each.
        """
        return self.forward(np.asarray(prompts) + np.asarray(sampled) - 1, int(np.sum(sampled)))

    def _attention(self, lengths: Sequence[int]) -> int:
        tokens = np.asarray(lengths, dtype=np.int64)
        return 2 * self.attention * int((tokens * (tokens + 1)).sum())


def _is_trained(parameter: Any) -> bool:
    return parameter.requires_grad


_spent = 0  # an integer: sums do not depend on their order


def spent() -> int:
    """Model FLOPs of this process so far."""
    return _spent


def add(flops: int) -> None:
    """Count what was computed elsewhere: by a trainer that is not ours, or by the interrupted run before this one."""
    global _spent
    _spent += flops


def add_pass(
    model: "nn.Module", prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], critic: "nn.Module | None" = None
) -> None:
    """Count a pass over prompts and completions (token ids) that needs the logits of the completions; with its backward pass
    where gradients are on."""
    import torch

    cost = ModelCost.of(model, critic)
    lengths = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    add((cost.training if torch.is_grad_enabled() else cost.forward)(lengths, sum(map(len, completions))))


@contextmanager
def not_counted() -> Iterator[None]:
    """For what looks at a method without being part of it, such as the EM monitor."""
    global _spent
    before = _spent
    try:
        yield
    finally:
        _spent = before
