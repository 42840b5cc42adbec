"""Memory of a stage on one GPU, from the model's configuration alone: the model stands on torch's meta device, without any weight.

Weights, frozen copies, adapters, critic, gradients and AdamW's moments, and the KV cache are exact counts of bytes. Activations are what
autograd saves in a forward pass of that model, per token (fused attention is assumed: what grows with the square of the length is left
out); those of a pass without gradients are taken as one layer's. A GPU needs a share more (:data:`SPARE`) for CUDA's context,
workspaces and fragmentation. One process with a whole copy of the model, and generation by Hugging Face, are assumed.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from brite_lib.errors import InputError
from brite_lib.params import DpoParams, DrrParams, EvalParams, LoraParams, ModelStageParams, PsiParams, ThetaParams

if TYPE_CHECKING:
    from torch import nn

GIB = 2**30
SPARE = 0.08  # of a GPU
LEARNERS = (PsiParams, ThetaParams, DpoParams)  # their parameters have lora and micro_batch_size
FLOAT_COPIES = 6  # of a chunk of logits in float32, with its softmax and gradients; the rows of a step of generation have fewer


@dataclass(frozen=True)
class Memory:
    """Bytes of one stage; ``training`` and ``scoring`` are activations with and without gradients."""

    weights: int
    frozen_copy: int
    adapters: int
    critic: int  # with its gradients and moments
    optimizer: int  # gradients and two moments of what is trained
    kv_cache: int
    logits: int
    training: int
    scoring: int

    @property
    def standing(self) -> int:
        """What is there all the time."""
        return self.weights + self.frozen_copy + self.adapters + self.critic + self.optimizer + self.logits

    @property
    def total(self) -> int:
        """The peak: sampling, scoring and training follow each other."""
        return self.standing + max(self.kv_cache, self.training, self.scoring)


def ghost(name: str, lora: LoraParams | None = None, dtype: str = "bfloat16") -> "nn.Module":
    """A causal language model on the meta device: every shape, no weight.

    Args:
        name: model directory or hub name, of which only ``config.json`` is read.
        lora: adapters to attach.
        dtype: of the weights.

    Raises:
        InputError: if there is no configuration that can be read.
    """
    from brite_lib.models import attach_lora, empty_model

    model = empty_model(name, dtype)
    return attach_lora(model, lora) if lora else model


def stage_memory(params: ModelStageParams, model: "nn.Module", tokens: int, sampled_at_once: int) -> Memory:
    """The memory of a stage.

    Args:
        params: its parameters.
        model: as :func:`ghost` makes it with the stage's ``lora``.
        tokens: the longest sequence, prompt included.
        sampled_at_once: sequences that are generated together; 0: the stage generates none.
    """
    from brite_lib.likelihood import MAX_LOGITS

    learns = isinstance(params, LEARNERS)
    lora = learns and params.lora is not None
    trained = _bytes(model, trained=True)
    weights = _bytes(model) - (trained if lora else 0)
    text = model.config.get_text_config()
    vocabulary, layers, batch = text.vocab_size, text.num_hidden_layers, params.batch_size
    other = isinstance(params, EvalParams) and params.reference_model not in ("", params.model)
    copies = other or isinstance(params, DrrParams) or (isinstance(params, PsiParams | DpoParams) and not lora)
    critic = critic_of(params, model)
    per_token = activation_bytes_per_token(model)
    micro = min(params.micro_batch_size, getattr(params, "train_batch_size", params.micro_batch_size)) if _trains(params) else 0
    chunk = min(MAX_LOGITS, batch * tokens * vocabulary)
    return Memory(
        weights=weights,
        frozen_copy=weights if copies else 0,
        adapters=trained if lora else 0,
        critic=4 * _bytes(critic) if critic else 0,
        optimizer=3 * trained if _trains(params) else 0,
        kv_cache=sampled_at_once * tokens * kv_bytes_per_token(model),
        logits=4 * FLOAT_COPIES * max(chunk, sampled_at_once * vocabulary),
        training=round(micro * tokens * per_token),
        scoring=round(batch * tokens * per_token / layers),
    )


def critic_of(params: ModelStageParams, model: "nn.Module") -> "nn.Module | None":
    """The critic that a stage trains beside a model on the meta device, if it has one."""
    if not isinstance(params, PsiParams) or params.advantage != "gae":
        return None
    import torch

    from brite_lib.agent import PolicyWithCritic

    with torch.device("meta"):
        return PolicyWithCritic(model, use_critic=True).value_head


def check_fit(stage: str, params: ModelStageParams, memory: Memory, gpu: float) -> None:
    """Refuse a stage that a GPU of ``gpu`` bytes can't hold.

    Raises:
        InputError: one sentence that says which setting to change, and to what.
    """
    room = (1 - SPARE) * gpu - memory.standing
    if memory.total <= memory.standing + room:
        return
    parts = sorted(((size, name) for name, size in vars(memory).items()), reverse=True)[:2]
    largest = " and ".join(f"{size / GIB:.1f} of {name.replace('_', ' ')}" for size, name in parts)
    raise InputError(
        f"{stage}: needs about {memory.total / GIB:.1f} GiB ({largest}), more than the {(1 - SPARE) * gpu / GIB:.1f} GiB that can be used "
        f"of a GPU with {gpu / GIB:.1f} GiB; {_advice(params, memory, room)}"
    )


def kv_bytes_per_token(model: "nn.Module") -> int:
    """Keys and values of one token in all layers."""
    text = model.config.get_text_config()
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * size * model.get_input_embeddings().weight.element_size()


def activation_bytes_per_token(model: "nn.Module", tokens: int = 64) -> float:
    """Bytes that autograd saves per token in a forward pass through the decoder, the part that grows with the square left out.

    Two lengths tell the two parts apart: f(T) = aT + bT².
    """
    short, long = (_saved_bytes(model, length) for length in (tokens, 2 * tokens))
    return (4 * short - long) / (2 * tokens)


def _saved_bytes(model: "nn.Module", tokens: int) -> int:
    import torch

    device = next(model.parameters()).device
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    found: dict[int, torch.Tensor] = {}  # by storage; the tensors are kept, so that no storage is used again

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in own:
            found[tensor.untyped_storage()._cdata] = tensor
        return tensor

    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    ids = torch.zeros((1, tokens), dtype=torch.long, device=device)
    # A ready mask: making one looks at values, which the meta device does not have.
    mask = torch.zeros((1, 1, tokens, tokens), dtype=causal.get_input_embeddings().weight.dtype, device=device)
    positions = torch.arange(tokens, device=device)[None]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = causal.get_decoder()(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    del output
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


def _trains(params: ModelStageParams) -> bool:
    return isinstance(params, (*LEARNERS, DrrParams))


def _bytes(model: "nn.Module", trained: bool = False) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad or not trained)


def _advice(params: ModelStageParams, memory: Memory, room: float) -> str:
    if room <= 0:
        if isinstance(params, LEARNERS) and params.lora is None:
            return "set lora: {r: 32, alpha: 128}, so that only adapters are trained"
        return "set dtype: bfloat16" if params.dtype == "float32" else "use a smaller model or a larger GPU"
    for setting, size in (("micro_batch_size", memory.training), ("batch_size", max(memory.kv_cache, memory.scoring))):
        if size > room:
            now = getattr(params, setting)
            fits = int(now * room / size)
            return f"set {setting} to {fits} (it is {now})" if fits else "lower max_rationale_tokens"
    raise AssertionError("a stage that fits needs no advice")
