"""Loading and saving language models: safetensors only, no remote code, no dropout."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from httpx import HTTPError
from huggingface_hub import get_session, hf_hub_download, hf_hub_url, snapshot_download, try_to_load_from_cache
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from brite_lib.errors import InputError
from brite_lib.files import atomic_directory
from brite_lib.params import LoraParams, is_path, resolve_path, suggestion
from brite_lib.template import RationaleTemplate

HUB_SECONDS = 5.0  # for the hub to answer, where an answer is not needed


def pick_device(device: str = "auto") -> torch.device:
    """The device a name means; ``auto`` prefers CUDA, then Apple's MPS, then the CPU.

    Raises:
        InputError: if this machine has no such device.
    """
    if device != "auto":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"device: {device!r} cannot be used here ({str(error).splitlines()[0]}); auto takes what there is") from None
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")


def load_policy(
    name_or_path: str | Path,
    adapter: str | Path | None = None,
    lora: LoraParams | dict[str, Any] | None = None,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
) -> nn.Module:
    """Load a causal language model.

    Args:
        name_or_path: model directory or hub name; weights must be safetensors. A PEFT adapter's directory means its base with it.
        adapter: directory of a trained PEFT adapter that belongs to θ.
        lora: adapters to train; θ's own adapter is merged first, so that "adapter off" is θ.
        device: see :func:`pick_device`.
        dtype: its name, or torch's own; ``auto`` is bfloat16 on CUDA and float32 elsewhere.

    Raises:
        InputError: if there is no such model, adapter, setting of ``lora``, device or dtype, or it has no safetensors weights.
    """
    target = pick_device(device)
    if dtype == "auto":
        dtype = torch.bfloat16 if target.type == "cuda" else torch.float32
    torch_dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(torch_dtype, torch.dtype):
        raise InputError(f"dtype: {dtype!r} is none; known: auto, float32, bfloat16, float16")
    if lora is not None:
        lora = LoraParams.parse(lora, where="lora")
    if base := adapter_base(name_or_path):
        name_or_path, adapter = base, name_or_path
    path = check_model(name_or_path)
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        # Gemma-2 caps its attention logits; the default attention would leave the cap out and compute another model.
        attention = "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None
        model = AutoModelForCausalLM.from_pretrained(
            path, config=config, dtype=torch_dtype, attn_implementation=attention, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"model: {path} could not be loaded: {str(error).splitlines()[0]}") from error
    if adapter is not None:
        if not (resolve_path(adapter) / "adapter_config.json").is_file():
            raise InputError(f"adapter: {adapter} has no adapter_config.json, so it is no PEFT adapter")
        model = PeftModel.from_pretrained(model, str(resolve_path(adapter)), use_safetensors=True)
    model = model.to(target)
    disable_dropout(model)
    return attach_lora(model, lora) if lora else model


def adapter_base(name_or_path: str | Path) -> str | None:
    """The model that a PEFT adapter directory belongs to; None if it is no such directory.

    Raises:
        InputError: if the adapter does not say.
    """
    path = resolve_path(name_or_path) / "adapter_config.json"
    if not path.is_file():
        return None
    base = json.loads(path.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not base:
        raise InputError(f"model: {path} does not name its base_model_name_or_path; add it, or merge the adapter into a model")
    return base


def check_model(name_or_path: str | Path) -> str:
    """The path or hub name to load.

    Raises:
        InputError: if it is meant as a directory and is missing, or holds no config or no safetensors weights.
    """
    path = resolve_path(name_or_path)
    if not path.is_dir():
        if is_path(str(name_or_path)):
            hint = suggestion(path.name, [place.name for place in path.parent.glob("*/")])
            raise InputError(f"model: there is no directory {name_or_path}{hint or '; run the stage that writes it first'}")
        return str(name_or_path)
    if not (path / "config.json").is_file():
        raise InputError(f"model: {path} has no config.json, so it is no Hugging Face model directory")
    if not any(path.glob("*.safetensors")):
        raise InputError(f"model: {path} has no *.safetensors weights; convert them with save_pretrained(…, safe_serialization=True)")
    return str(path)


def local_model(name_or_path: str | Path) -> str:
    """The directory of a model, downloaded first if it is a hub's and not in the cache.

    Raises:
        InputError: as :func:`check_model`, or if the hub can't give it.
    """
    path = check_model(name_or_path)
    if Path(path).is_dir():
        return path
    try:
        # Subfolders and consolidated files hold the same weights in other formats.
        return snapshot_download(path, allow_patterns=["*.json", "*.safetensors"], ignore_patterns=["*/*", "consolidated*"])
    except (OSError, ValueError) as error:
        raise InputError(f"model: {path} could not be had from the hub: {str(error).splitlines()[0]}") from error


def empty_model(name_or_path: str | Path, dtype: str = "float32") -> nn.Module:
    """A model on the meta device: every shape, no weight; only its ``config.json`` is read.

    Raises:
        InputError: if there is no configuration that can be read.
    """
    try:
        config = AutoConfig.from_pretrained(_config_file(str(name_or_path)), trust_remote_code=False)
    except HTTPError as error:
        raise InputError(f"model: {name_or_path}: its config.json is not in the cache and the hub is out of reach ({error})") from None
    except (OSError, ValueError) as error:
        raise InputError(f"model: {name_or_path}: its config.json cannot be read: {str(error).splitlines()[0].rstrip('.')}") from None
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))


def _config_file(name: str) -> str:
    """A model's directory, or the ``config.json`` of a hub's, with one short try: huggingface_hub goes on trying for half a minute."""
    local = resolve_path(name)
    if local.is_dir():
        return str(local)
    cached = try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str):
        return cached
    get_session().head(hf_hub_url(name, "config.json"), timeout=HUB_SECONDS)
    return hf_hub_download(name, "config.json")


def load_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory or hub name.

    Raises:
        InputError: if there is none that loads.
    """
    path = check_model(name_or_path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        if not _keeps_spaces(tokenizer):
            # DeepSeek-Coder's files name the class of Llama's tokenizer, which transformers 5 then rebuilds: it drops every space.
            as_written = PreTrainedTokenizerFast.from_pretrained(path)
            tokenizer = as_written if _keeps_spaces(as_written) else tokenizer
    except (OSError, ValueError) as error:
        raise InputError(f"model: {path} has no tokenizer that loads: {str(error).splitlines()[0]}") from error
    return tokenizer


def _keeps_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.decode(tokenizer("a b", add_special_tokens=False)["input_ids"]) == "a b"


def load_template(model: str | Path, template: str | dict[str, Any] = "auto") -> RationaleTemplate:
    """Tokenizer and texts of a model in one step; an adapter has those of its base."""
    model = adapter_base(model) or model
    return RationaleTemplate.load(load_tokenizer(model), template, model)


def check_vocabulary(parameter: str, name_or_path: str | Path, template: RationaleTemplate, model: str) -> None:
    """Refuse a model that is to read or write token ids together with another one, if their tokens differ.

    Raises:
        InputError: one sentence naming the parameter.
    """
    if load_tokenizer(name_or_path).get_vocab() != template.tokenizer.get_vocab():
        raise InputError(f"{parameter}: {name_or_path} has another vocabulary than {model}, so the same token ids would mean other texts")


def save_policy(model: nn.Module, template: RationaleTemplate, directory: str | Path) -> Path:
    """Write a complete model directory (weights, tokenizer, template) and return it.

    Adapters are merged into the weights, so that the directory is a plain θ for the next stage. The directory
    appears under its name only when it is whole; an older one is replaced.
    """
    directory = Path(directory)
    model = merged(model)
    with atomic_directory(directory) as temporary:
        model.save_pretrained(temporary, safe_serialization=True)
        template.tokenizer.save_pretrained(temporary)
        template.save(temporary)
        shutil.rmtree(temporary / ".cache", ignore_errors=True)
    return directory


def merged(model: nn.Module) -> nn.Module:
    """The model with its adapters, if it has any, added to the weights for good."""
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
        model.name_or_path = None  # no longer what lies there: an adapter on top of it has a base without a name
    return model


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout rate to 0: a rollout and its score must be the same function."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def attach_lora(model: nn.Module, lora: LoraParams) -> PeftModel:
    """Add new adapters to train; adapters that the model already carries become part of θ by merging them."""
    model = merged(model)
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, target_modules=lora.target_modules, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)


def warn_of_lost_steps(model: nn.Module, learning_rate: float) -> None:
    """Say so if the weights to be trained are mostly too coarse for steps of AdamW, which are about ``learning_rate`` long.

    Neighbours of w lie at least eps/2·|w| apart (2⁻⁸ in bfloat16), and a step of less than half of that is rounded away.
    """
    if torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
        return  # the first process says it for all
    trained = [p.detach() for p in model.parameters() if p.requires_grad]
    lost = sum((torch.finfo(p.dtype).eps / 4 * p.abs() > learning_rate).sum().item() for p in trained)
    if (share := lost / max(1, sum(p.numel() for p in trained))) > 0.5:
        kind = str(trained[0].dtype).removeprefix("torch.")
        print(f"warning: a step of learning_rate {learning_rate:g} is rounded away in {share:.0%} of the weights, which are {kind}; "
              "set dtype: float32, or lora, whose adapters are")  # fmt: skip


class Reference:
    """Frozen θ_t beside a policy that starts from it: the policy's weights with the adapter off, or a copy."""

    def __init__(self, policy: nn.Module):
        self._adapter = policy if isinstance(policy, PeftModel) else None
        self._copy = None if self._adapter else deepcopy(policy).eval().requires_grad_(False)

    @contextmanager
    def model(self) -> Iterator[nn.Module]:
        """θ_t for the length of a ``with`` block."""
        if self._adapter is None:
            yield self._copy
            return
        with self._adapter.disable_adapter():
            yield self._adapter
