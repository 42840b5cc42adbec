"""The process that holds one vLLM engine: ``python -m brite_lib.vllm_worker FD``, started by :mod:`brite_lib.vllm_engine`.

Messages over the connection ``FD``, pickled: settings in, ("ready", longest length) out; then jobs in, ("ended", how many) while
it samples and ("drawn", (ids, log-probabilities)) out; None ends it. ("error", sentence) may come at any time; stderr is the log.
"""

import io
import json
import os
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, get_args

import torch
from tqdm import tqdm

from brite_lib.errors import InputError
from brite_lib.head_width import widen_heads
from brite_lib.lifeline import die_with_ancestors


def main() -> None:
    """Serve one parent until it closes the connection."""
    die_with_ancestors()
    connection = Connection(int(sys.argv[1]))
    try:
        engine, adapter = start(**connection.recv())
        connection.send(("ready", engine.llm_engine.model_config.max_model_len))
        while job := connection.recv():
            connection.send(("drawn", sample(engine, adapter, job, lambda count: connection.send(("ended", count)))))
    except EOFError:  # the parent has gone
        traceback.print_exc()
    except Exception as error:
        traceback.print_exc()
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        connection.send(("error", kind + " ".join(str(error).split())[:400]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # the driver frees the GPU; vLLM's own way takes longer


def start(model: str, adapter: str | None, dtype: str, scratch: str) -> tuple[Any, Any]:
    """The engine, and what every request says about the adapter.

    Args:
        scratch: a directory that may be made.
    """
    from vllm import LLM
    from vllm.config.lora import MaxLoRARanks
    from vllm.lora.request import LoRARequest
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

        model, adapter = widen_heads(model, adapter, CPUAttentionBackend.get_supported_head_sizes(), scratch)
        options: dict[str, Any] = {"dtype": "float32" if dtype == "auto" else dtype, "enforce_eager": True}
    else:
        free, total = torch.cuda.mem_get_info()  # the notebook's own model may be there too
        options = {"dtype": "bfloat16" if dtype == "auto" else dtype, "gpu_memory_utilization": 0.9 * free / total}
    if adapter:
        options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": room_for_rank(adapter, get_args(MaxLoRARanks))}
    engine = LLM(
        model,
        load_format="safetensors",
        max_model_len=-1,  # as long as the model and the memory allow
        enable_prefix_caching=True,
        generation_config="vllm",  # not the sampling defaults that a hub model brings
        skip_tokenizer_init=True,
        seed=0,
        **options,
    )
    return engine, LoRARequest("adapter", 1, adapter) if adapter else None


def room_for_rank(adapter: str, known: tuple[int, ...]) -> int:
    """The smallest of the ranks that vLLM knows and a PEFT adapter fits in."""
    config = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    if rank > max(known):
        raise InputError(f"the adapter has rank {rank}, but {max(known)} is the most that vLLM runs unmerged; merge it")
    return min(room for room in known if room >= rank)


def sample(engine: Any, adapter: Any, job: dict[str, Any], report: Callable[[int], None]) -> tuple[list[list[int]], list[list[float]]]:
    """Ids and log-probabilities of one completion per prompt."""
    from vllm import SamplingParams

    class Report(tqdm):
        """vLLM's progress bar, told to the parent."""

        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **options, file=io.StringIO(), mininterval=3600)

        def update(self, n: int = 1) -> None:
            report(n)
            super().update(n)

    common = {"temperature": job["temperature"], "max_tokens": job["max_new_tokens"], "stop_token_ids": job["stop_ids"]}
    # ignore_eos: the stop tokens are the template's. logprobs=0: of the sampled token alone, before the temperature.
    common |= {"ignore_eos": True, "detokenize": False, "logprobs": 0}
    params = [SamplingParams(**common, seed=seed if job["temperature"] > 0 else None) for seed in job["seeds"]]
    prompts = [{"prompt_token_ids": list(prompt)} for prompt in job["prompts"]]
    drawn = [output.outputs[0] for output in engine.generate(prompts, params, use_tqdm=Report, lora_request=adapter)]
    ids = [list(one.token_ids) for one in drawn]
    log_probs = [[at[token].logprob for token, at in zip(one.token_ids, one.logprobs, strict=True)] for one in drawn]
    return ids, log_probs


if __name__ == "__main__":
    main()
