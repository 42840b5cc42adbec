"""Policy and critic cut into shards over the processes by torch's FSDP2, and put together again for files.

accelerate's ``fsdp2.yaml`` asks for it. Weights are gathered in groups: each decoder layer by itself, as its turn comes; the critic,
which is float32 whatever the policy is; and with the root the rest (embedding, last norm, output layer). What is *trained* in a group
must have one dtype, so a bfloat16 policy can have float32 adapters and a float32 critic.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

from brite_lib import costs
from brite_lib.agent import PolicyWithCritic
from brite_lib.errors import InputError


def wants_shards(accelerator: Accelerator) -> bool:
    """Whether ``accelerate launch`` was told to shard.

    Raises:
        InputError: if it was told so in a way that is not supported here.
    """
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        plugin = accelerator.state.fsdp_plugin
        if not accelerator.is_fsdp2 or isinstance(plugin.cpu_offload, CPUOffloadPolicy):
            raise InputError(
                "accelerate_config: ψ-PPO is sharded by FSDP with fsdp_version: 2 and fsdp_offload_params: false, by nothing else"
            )
    return accelerator.is_fsdp2


def shard(agent: PolicyWithCritic) -> None:
    """Shard all weights in place, before an optimiser knows them. All processes must call this."""
    layer_names = {name for module in agent.modules() for name in getattr(module, "_no_split_modules", None) or ()}
    layers = [module for module in agent.modules() if type(module).__name__ in layer_names]
    for module in [*layers, *filter(None, [agent.value_head]), agent]:
        fully_shard(module)
    # FSDP2 finds its root in the first forward, and what is trained too: it must not be that of a layer, or one without adapters.
    with torch.no_grad(), costs.not_counted():
        agent([[0]], [[0]])
    agent.reshard()


def is_sharded(model: nn.Module) -> bool:
    """Whether some of the weights are shards."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


@contextmanager
def gathered(root: nn.Module) -> Iterator[None]:
    """The root's own weights whole, for what calls modules below it without its forward; a no-op where nothing is sharded."""
    if not isinstance(root, FSDPModule):
        yield
        return
    root.unshard()
    try:
        yield
    finally:
        root.reshard()


def whole(tree: Any, keep: bool = True) -> Any:
    """The dicts and lists of ``tree`` with each sharded tensor whole on the CPU. All processes must call this.

    Args:
        keep: False: None instead of these tensors, for a process that has no use for them.
    """

    def of(value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        full = value.full_tensor()
        return full.cpu() if keep else None

    return tree_map(of, tree)


def shards_like(value: Tensor, like: Tensor) -> Tensor:
    """``value`` sharded as ``like`` is; itself where that is not sharded, or is of another shape."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def without_weights(model: nn.Module) -> nn.Module:
    """A copy on the meta device, to be filled by :func:`fill`."""
    copies = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad) for p in model.parameters()}
    return deepcopy(model, copies)


def fill(empty: nn.Module, sharded: nn.Module, keep: bool) -> nn.Module:
    """``empty``, a copy of the model before it was sharded, with the whole weights on the CPU. All processes must call this.

    Args:
        keep: False: leave it empty, in a process that has no use for it.
    """
    for target, source in zip(empty.parameters(), sharded.parameters(), strict=True):
        weights = whole(source.detach(), keep)
        if keep:
            torch.utils.swap_tensors(target, nn.Parameter(weights, requires_grad=target.requires_grad))  # wherever it is tied to
    return empty.to("cpu") if keep else empty
