"""Memory of a stage on one GPU, from the model's configuration alone: the model stands on torch's meta device, without any weight.

Weights, frozen copies, adapters, critic, gradients and AdamW's moments, and the KV cache are exact counts of bytes. Activations are what
autograd saves in a forward pass of that model, per token (fused attention is assumed: what grows with the square of the length is left
out); those of a pass without gradients are taken as one layer's. A GPU needs a share more (:data:`SPARE`) for CUDA's context,
workspaces and fragmentation. Generation by Hugging Face is assumed.

Of several processes each has a GPU: DDP repeats everything on all of them; FSDP2 divides weights, gradients and moments, and has one
layer together while it computes and the next one on its way. Each reads the whole model before it is divided.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from brite_lib.errors import InputError
from brite_lib.params import DpoParams, DrrParams, EvalParams, LoraParams, ModelStageParams, PsiParams, ThetaParams

if TYPE_CHECKING:
    from torch import nn

GIB = 2**30
SPARE = 0.08  # of a GPU
LEARNERS = (PsiParams, ThetaParams, DpoParams)  # their parameters have lora and micro_batch_size
FSDP2 = "params/accelerate/fsdp2.yaml"
FLOAT_COPIES = 6  # of a chunk of logits in float32, with its softmax and gradients; the rows of a step of generation have fewer


@dataclass(frozen=True)
class Sharing:
    """How many processes train together, each on a GPU of its own; ``sharded``: with FSDP2, else each has all."""

    processes: int = 1
    sharded: bool = False


ALONE = Sharing()


@dataclass(frozen=True)
class Memory:
    """Bytes of one stage on each GPU; ``training`` and ``scoring`` are activations with and without gradients."""

    weights: int
    frozen_copy: int
    adapters: int
    critic: int  # with its gradients and moments
    optimizer: int  # gradients and two moments of what is trained
    kv_cache: int
    logits: int
    training: int
    scoring: int
    exchange: int = 0  # buffers between processes: DDP's buckets of gradients, FSDP2's whole layers with their gradients
    loading: int = 0  # what is whole before FSDP2 divides it

    @property
    def standing(self) -> int:
        """What is there all the time."""
        return self.weights + self.frozen_copy + self.adapters + self.critic + self.optimizer + self.logits + self.exchange

    @property
    def total(self) -> int:
        """The peak: loading, sampling, scoring and training follow each other."""
        return max(self.loading, self.standing + max(self.kv_cache, self.training, self.scoring))


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


def stage_memory(params: ModelStageParams, model: "nn.Module", tokens: int, sampled_at_once: int, sharing: Sharing = ALONE) -> Memory:
    """The memory of a stage, on each GPU.

    Args:
        params: its parameters.
        model: as :func:`ghost` makes it with the stage's ``lora``.
        tokens: the longest sequence, prompt included.
        sampled_at_once: sequences that are generated together; 0: the stage generates none.
        sharing: of those that train.
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
    per_token, recomputes = activation_bytes_per_token(model), getattr(params, "gradient_checkpointing", False)
    micro = params.micro_batch_size if _trains(params) else 0
    if micro and hasattr(params, "train_batch_size"):
        micro = min(micro, max(1, params.train_batch_size // sharing.processes))
    micro *= 2 if isinstance(params, DpoParams) else 1  # a pair is two sequences, side by side in TRL
    chunk = min(MAX_LOGITS, batch * tokens * vocabulary)
    alone = Memory(
        weights=weights,
        frozen_copy=weights if copies else 0,
        adapters=trained if lora else 0,
        critic=4 * _bytes(critic) if critic else 0,
        optimizer=3 * trained if _trains(params) else 0,
        kv_cache=sampled_at_once * tokens * kv_bytes_per_token(model),
        logits=4 * FLOAT_COPIES * max(chunk, sampled_at_once * vocabulary),
        training=round(micro * tokens * (_recomputed(model, per_token) if recomputes else per_token)),
        scoring=round(batch * tokens * per_token / layers),
    )
    return _divided(alone, model, sharing) if _trains(params) else alone


def after_training(memory: Memory) -> Memory:
    """Of the notebook's process when the others have trained: it has the whole model, no gradients and no moments.

    Args:
        memory: as :func:`stage_memory` gives it for one process.
    """
    return replace(memory, critic=memory.critic // 4, optimizer=0, training=0)


def _divided(alone: Memory, model: "nn.Module", sharing: Sharing) -> Memory:
    """What each of several processes has."""
    gradients = alone.critic // 4 + alone.optimizer // 3
    if not sharing.sharded:
        return replace(alone, exchange=gradients if sharing.processes > 1 else 0)

    def share(size: int) -> int:
        return -(-size // sharing.processes)

    whole, trained = (_gathered(model, only) + alone.critic // 4 for only in (False, True))
    return replace(
        alone,
        weights=share(alone.weights),
        frozen_copy=share(alone.frozen_copy),
        adapters=share(alone.adapters),
        critic=share(alone.critic),
        optimizer=share(alone.optimizer),
        exchange=whole + trained,
        loading=alone.weights + alone.frozen_copy + alone.adapters + alone.critic // 4,
    )


def _gathered(model: "nn.Module", trained: bool) -> int:
    """Bytes that FSDP2 has whole at a time: a layer, the next one, and what stands outside the layers."""
    names = {name for module in model.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    layers = [_bytes(module, trained) for module in model.modules() if type(module).__name__ in names]
    return _bytes(model, trained) - sum(layers) + 2 * max(layers)


def critic_of(params: ModelStageParams, model: "nn.Module") -> "nn.Module | None":
    """The critic that a stage trains beside a model on the meta device, if it has one."""
    if not isinstance(params, PsiParams) or params.advantage != "gae":
        return None
    import torch

    from brite_lib.agent import PolicyWithCritic

    with torch.device("meta"):
        return PolicyWithCritic(model, use_critic=True).value_head


def check_fit(stage: str, params: ModelStageParams, memory: Memory, gpu: float, shared: Callable[[Sharing], Memory] | None = None) -> None:
    """Refuse a stage that GPUs of ``gpu`` bytes can't hold.

    Args:
        memory: on each of them.
        shared: the memory under another sharing, for a stage that can have one.

    Raises:
        InputError: one sentence that says which setting to change, and to what.
    """
    usable = (1 - SPARE) * gpu
    if isinstance(params, PsiParams) and params.rollout_engine == "vllm" and params.rollout_device == "auto":
        _check_rollouts(stage, params, memory, gpu, usable)
    if memory.total <= usable:
        return
    parts = sorted(((size, name) for name, size in vars(memory).items()), reverse=True)[:2]
    largest = " and ".join(f"{size / GIB:.1f} of {name.replace('_', ' ')}" for size, name in parts)
    raise InputError(
        f"{stage}: needs about {memory.total / GIB:.1f} GiB ({largest}), more than the {usable / GIB:.1f} GiB that can be used "
        f"of a GPU with {gpu / GIB:.1f} GiB; {_advice(params, memory, usable, shared)}"
    )


def _check_rollouts(stage: str, params: PsiParams, memory: Memory, gpu: float, usable: float) -> None:
    """An engine on the policy's own GPU is there beside all that stands, and must hold the weights itself."""
    share, most = params.rollout_memory * gpu, usable - memory.standing
    if memory.weights + memory.adapters < share <= most:
        return
    lowest, highest = -(-100 * (memory.weights + memory.adapters) // gpu) / 100, 100 * most // gpu / 100
    advice = f"between {lowest:.2f} and {highest:.2f}" if lowest < highest else "on another GPU: rollout_device: cuda:1"
    raise InputError(
        f"{stage}: rollout_memory: {params.rollout_memory:g} is {share / GIB:.1f} of the GPU's {gpu / GIB:.1f} GiB for vLLM, "
        f"whose weights take {memory.weights / GIB:.1f}, beside {memory.standing / GIB:.1f} that ψ-PPO holds; set it {advice}"
    )


def kv_bytes_per_token(model: "nn.Module") -> int:
    """Keys and values of one token in all layers."""
    text = model.config.get_text_config()
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * size * model.get_input_embeddings().weight.element_size()


@lru_cache(maxsize=4)
def activation_bytes_per_token(model: "nn.Module", tokens: int = 64) -> float:
    """Bytes that autograd saves per token in a forward pass through the decoder, the part that grows with the square left out.

    Two lengths tell the two parts apart: f(T) = aT + bT².
    """
    short, long = (_saved_bytes(model, length) for length in (tokens, 2 * tokens))
    return (4 * short - long) / (2 * tokens)


def _recomputed(model: "nn.Module", per_token: float) -> float:
    """Bytes per token with gradient checkpointing: every layer's input, and one layer's activations while it is computed again."""
    text = model.config.get_text_config()
    inputs = text.num_hidden_layers * text.hidden_size * model.get_input_embeddings().weight.element_size()
    return inputs + per_token / text.num_hidden_layers


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


def _advice(params: ModelStageParams, memory: Memory, usable: float, shared: Callable[[Sharing], Memory] | None) -> str:
    room = usable - memory.standing
    if room <= 0 or memory.loading > usable:
        advice = []
        if isinstance(params, LEARNERS) and params.lora is None:
            advice.append("lora: {r: 32, alpha: 128}, so that only adapters are trained")
        if shared and (enough := _enough(params, usable, shared)):
            processes = f"processes: {enough} with " if enough != params.processes else ""
            advice.append(f"{processes}accelerate_config: {FSDP2}, so that GPUs divide the weights")
        if not advice and params.dtype == "float32":
            advice.append("dtype: bfloat16")
        return "set " + ", or ".join(advice) if advice else "use a smaller model or a larger GPU"
    for setting, size in (("micro_batch_size", memory.training), ("batch_size", max(memory.kv_cache, memory.scoring))):
        if size > room:
            now = getattr(params, setting)
            fits = int(now * room / size)
            recompute = setting == "micro_batch_size" and not getattr(params, "gradient_checkpointing", True)
            shorter = "set gradient_checkpointing: true" if recompute else "lower max_rationale_tokens"
            return f"set {setting} to {fits} (it is {now})" if fits else shorter
    raise AssertionError("a stage that fits needs no advice")


def _enough(params: ModelStageParams, usable: float, shared: Callable[[Sharing], Memory]) -> int | None:
    """The fewest processes that have room when FSDP2 divides the model, None if up to 64 have none."""
    at_least = params.processes if params.processes != "auto" else 1
    return next((n for n in (2, 4, 8, 16, 32, 64) if n >= at_least and shared(Sharing(n, sharded=True)).total <= usable), None)
