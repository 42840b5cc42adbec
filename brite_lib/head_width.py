"""The same Llama with wider attention heads, for kernels that know some widths only.

vLLM's CPU kernels know heads of 32, 64, … numbers; the embedded model's have 24. Zeros in the new places change nothing: queries and
keys add nothing to their product there, values are not read further. Two things depend on the width and are undone: queries
are scaled by its square root, and rotation stays in the old places (``partial_rotary_factor``).
"""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from brite_lib.errors import InputError


def wider_heads(model: str, widths: Sequence[int]) -> tuple[int, int] | None:
    """The width of the model's heads and the next of ``widths``; None if the heads are as they have to be.

    Args:
        model: model directory; :func:`widened` is exact for the Llama architecture with plain rotary embeddings.

    Raises:
        InputError: for any other architecture whose heads have another width.
    """
    config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config") or config
    old = text.get("head_dim") or text.get("hidden_size", 0) // (text.get("num_attention_heads") or 1)
    if not old or old in widths:
        return None
    new = next((width for width in sorted(widths) if width > old), None)
    rope = config.get("rope_parameters") or {}
    if new is None or config.get("model_type") != "llama" or rope.get("rope_type", "default") != "default":
        raise InputError(f"this engine has no attention for heads of {old} numbers, only of {', '.join(map(str, widths))}; use engine: hf")
    return old, new


def widened(source: str, copy: str | Path, old: int, new: int) -> str:
    """A copy of a model directory, or of a PEFT adapter's, with heads of ``new`` numbers instead of ``old``."""
    copy = Path(copy)
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    for file in Path(source).glob("*.safetensors"):
        wide = {name: _widened(name, tensor, old, new) for name, tensor in load_file(file).items()}
        save_file(wide, copy / file.name, metadata={"format": "pt"})
    if (copy / "config.json").is_file():
        config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
        rope = {"rope_theta": config.get("rope_theta", 10000.0), "rope_type": "default", **(config.get("rope_parameters") or {})}
        config |= {"head_dim": new, "rope_parameters": rope | {"partial_rotary_factor": old / new}}
        (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return str(copy)


def _widened(name: str, tensor: Tensor, old: int, new: int) -> Tensor:
    """One weight, bias or LoRA factor with zeros in the new places of every head."""
    makes_heads = any(f".{kind}_proj." in name for kind in "qkv") and "lora_A" not in name
    reads_heads = ".o_proj." in name and "lora_B" not in name and not name.endswith("bias")
    if makes_heads:
        heads = tensor.unflatten(0, (-1, old)) * (math.sqrt(new / old) if ".q_proj." in name else 1.0)
        return torch.cat([heads, heads.new_zeros(heads.shape[0], new - old, *heads.shape[2:])], dim=1).flatten(0, 1).contiguous()
    if reads_heads:
        heads = tensor.unflatten(1, (-1, old))
        return torch.cat([heads, heads.new_zeros(*heads.shape[:2], new - old)], dim=2).flatten(1).contiguous()
    return tensor
