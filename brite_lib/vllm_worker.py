"""The process that holds one vLLM engine: ``python -m brite_lib.vllm_worker FD``, started by :mod:`brite_lib.vllm_engine`.

Messages over the connection ``FD``, pickled: settings in, ("ready", longest length) out; then jobs in, (name of a method of
:class:`Engine`, its arguments), and ("done", what it returned) out, with ("ended", how many) while it samples; None ends it.
("error", sentence) may come at any time; stderr is the log.
"""

import io
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, get_args

import torch
from tqdm import tqdm

from brite_lib.errors import InputError
from brite_lib.head_width import widened, wider_heads
from brite_lib.lifeline import die_with_ancestors


def main() -> None:
    """Serve one parent until it closes the connection."""
    die_with_ancestors()
    connection = Connection(int(sys.argv[1]))
    try:
        engine = Engine(**connection.recv(), report=lambda count: connection.send(("ended", count)))
        connection.send(("ready", engine.llm.llm_engine.model_config.max_model_len))
        while job := connection.recv():
            method, arguments = job
            connection.send(("done", getattr(engine, method)(**arguments)))
    except EOFError:  # the parent has gone
        traceback.print_exc()
    except Exception as error:
        traceback.print_exc()
        kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
        connection.send(("error", kind + " ".join(str(error).split())[:400]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # the driver frees the GPU; vLLM's own way takes longer


class Engine:
    """A vLLM engine and the adapter that its requests name.

    Args:
        model, adapter: directories; adapter None: it has none, ever.
        scratch: a directory that may be made.
        memory: share of the GPU that it may take; None: nine tenths of what is free.
        sleeps: it can :meth:`sleep` (GPUs only).
        report: called with the number of completions that have ended since the last call.
    """

    def __init__(
        self,
        model: str,
        adapter: str | None,
        dtype: str,
        scratch: str,
        memory: float | None = None,
        sleeps: bool = False,
        report: Callable[[int], None] = lambda count: None,
    ):
        from vllm import LLM
        from vllm.config.lora import MaxLoRARanks
        from vllm.platforms import current_platform

        self._scratch, self._report = Path(scratch), report
        self._widths: tuple[int, int] | None = None  # of heads, where they have to be widened
        self._asleep, self._adapters, self._adapter = False, 0, None
        self._cpu = current_platform.is_cpu()
        if self._cpu:
            from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

            self._widths = wider_heads(model, CPUAttentionBackend.get_supported_head_sizes())
            options: dict[str, Any] = {"dtype": "float32" if dtype == "auto" else dtype, "enforce_eager": True}
        else:
            free, total = torch.cuda.mem_get_info()  # the notebook's own model may be there too
            share = memory or 0.9 * free / total
            options = {"dtype": "bfloat16" if dtype == "auto" else dtype, "gpu_memory_utilization": share, "enable_sleep_mode": sleeps}
        if adapter:
            options |= {"enable_lora": True, "max_loras": 1, "max_lora_rank": room_for_rank(adapter, get_args(MaxLoRARanks))}
        self.llm = LLM(
            self._wide(model, "model"),
            load_format="safetensors",
            max_model_len=-1,  # as long as the model and the memory allow
            enable_prefix_caching=True,
            generation_config="vllm",  # not the sampling defaults that a hub model brings
            skip_tokenizer_init=True,
            seed=0,
            **options,
        )
        if adapter:
            self._swap_adapter(adapter)

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], stop_ids: list[int], temperature: float, max_new_tokens: int
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Ids and log-probabilities of one completion per prompt."""
        from vllm import SamplingParams

        report = self._report

        class Report(tqdm):
            """vLLM's progress bar, told to the parent."""

            def __init__(self, *args: Any, **options: Any):
                super().__init__(*args, **options, file=io.StringIO(), mininterval=3600)

            def update(self, n: int = 1) -> None:
                report(n)
                super().update(n)

        # ignore_eos: the stop tokens are the template's. logprobs=0: of the sampled token alone, before the temperature.
        common = {"temperature": temperature, "max_tokens": max_new_tokens, "stop_token_ids": stop_ids}
        common |= {"ignore_eos": True, "detokenize": False, "logprobs": 0}
        params = [SamplingParams(**common, seed=seed if temperature > 0 else None) for seed in seeds]
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        drawn = [output.outputs[0] for output in self.llm.generate(requests, params, use_tqdm=Report, lora_request=self._adapter)]
        ids = [list(one.token_ids) for one in drawn]
        log_probs = [[at[token].logprob for token, at in zip(one.token_ids, one.logprobs, strict=True)] for one in drawn]
        return ids, log_probs

    def load(self, directory: str) -> None:
        """Take another adapter, or other weights where there is none, and be awake: first the weights, the KV cache last."""
        if self._asleep:
            self.llm.wake_up(["weights"])
        if self._adapter:
            self._swap_adapter(directory)
        else:
            self.llm.collective_rpc("reload_weights", kwargs={"weights_path": self._wide(directory, "weights")})
            if self._widths:
                shutil.rmtree(self._scratch / "weights")
            if self._cpu:
                self.llm.apply_model(_pack_heads)
        if self._asleep:
            self.llm.wake_up(["kv_cache"])
        self._asleep = False
        self.llm.reset_prefix_cache()

    def sleep(self) -> None:
        """Free the GPU until :meth:`load`.

        With an adapter level 1, which keeps the base's weights in main memory; else level 2: :meth:`load` brings all weights anew.
        """
        self.llm.sleep(level=1 if self._adapter else 2)
        self._asleep = True

    def _swap_adapter(self, directory: str) -> None:
        """A new name for every adapter: vLLM knows adapters, and the prefixes computed with them, by name."""
        from vllm.lora.request import LoRARequest

        self._adapters += 1
        old, self._adapter = self._adapter, LoRARequest(f"adapter{self._adapters}", self._adapters, self._wide(directory, "adapter"))
        if old:
            self.llm.llm_engine.remove_lora(old.lora_int_id)
        self.llm.llm_engine.add_lora(self._adapter)
        if self._widths:
            shutil.rmtree(self._scratch / "adapter")

    def _wide(self, source: str, name: str) -> str:
        """The directory, or a copy of it with heads that this engine has kernels for."""
        return widened(source, self._scratch / name, *self._widths) if self._widths else source


def _pack_heads(model: torch.nn.Module) -> None:
    """A head on the CPU computes with a packed copy of its weights, which vLLM 0.31 does not renew where they are the embedding's."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)


def room_for_rank(adapter: str, known: tuple[int, ...]) -> int:
    """The smallest of the ranks that vLLM knows and a PEFT adapter fits in."""
    config = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    if rank > max(known):
        raise InputError(f"the adapter has rank {rank}, but {max(known)} is the most that vLLM runs unmerged; merge it")
    return min(room for room in known if room >= rank)


if __name__ == "__main__":
    main()
