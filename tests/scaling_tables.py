"""The tables of docs/scaling.md, by the plan's arithmetic: ``python tests/scaling_tables.py`` writes them, test_memory.py compares."""

import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from transformers import Qwen2Config

from brite_lib.forecast import gib
from brite_lib.memory import ALONE, GIB, SPARE, Memory, Sharing, after_training, ghost, stage_memory
from brite_lib.params import (
    PROJECT_ROOT,
    DpoParams,
    EvalParams,
    LoraParams,
    ModelStageParams,
    PsiParams,
    RejectionParams,
    ThetaParams,
    TrainingStageParams,
)

PAGE = PROJECT_ROOT / "docs/scaling.md"
BEGIN, END = "<!-- begin tests/scaling_tables.py -->\n", "<!-- end -->\n"
TOKENS = 256 + 512 + 32  # prompt, rationale, answer
LORA = {"r": 32, "alpha": 128}
SHAPES = {  # of Qwen2.5
    "0.5B": {"vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
             "num_key_value_heads": 2, "tie_word_embeddings": True},
    "7B": {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
           "num_key_value_heads": 4, "tie_word_embeddings": False},
    "32B": {"vocab_size": 152064, "hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64, "num_attention_heads": 40,
            "num_key_value_heads": 8, "tie_word_embeddings": False},
}  # fmt: skip
FSDP2 = {"accelerate_config": "params/accelerate/fsdp2.yaml"}
TWO_NODES = {"accelerate_config": "params/accelerate/fsdp2-two-nodes.yaml"}


class Choice(NamedTuple):
    """A model on GPUs of so many GiB, and what is set for it: of all stages, and of those that train."""

    model: str
    gpu: float
    common: dict[str, Any]
    training: dict[str, Any]


CHOICES = {
    "0.5B on a laptop's GPU with 8 GB": [
        Choice("0.5B", 8, {"batch_size": 16}, {"lora": LORA, "micro_batch_size": 1}),
        Choice("0.5B", 8, {"batch_size": 16}, {"lora": None, "micro_batch_size": 1}),
    ],
    "7B on one GPU with 80 GB": [
        Choice("7B", 79, {"batch_size": 64}, {"lora": LORA, "micro_batch_size": 2}),
        Choice("7B", 79, {"batch_size": 32}, {"lora": None, "micro_batch_size": 1}),
    ],
    "7B on eight GPUs with 80 GB": [
        Choice("7B", 79, {"batch_size": 64}, {"lora": LORA, "micro_batch_size": 2, "processes": 8}),
        Choice("7B", 79, {"batch_size": 64}, {"lora": None, "micro_batch_size": 4, "processes": 8, **FSDP2}),
    ],
    "32B on two nodes with eight GPUs with 80 GB each": [
        Choice("32B", 79, {"batch_size": 16}, {"lora": LORA, "micro_batch_size": 1, "processes": 16, **TWO_NODES}),
        Choice("32B", 79, {"batch_size": 16}, {"lora": None, "micro_batch_size": 1, "processes": 16, **TWO_NODES}),
    ],
}
STAGES = {
    "ψ-PPO": (PsiParams, {"advantage": "gae"}),
    "θ-SFT": (ThetaParams, {}),
    "DPO": (DpoParams, {}),
    "rejection sampling": (RejectionParams, {}),
    "evaluation": (EvalParams, {"reference_model": "the base"}),
}
COLUMNS = ("weights", "frozen copy", "trained", "exchange", "KV cache", "logits", "training", "scoring", "loading", "peak", "afterwards")


def tables(shapes: Path) -> Iterator[str]:
    """The page's part, line by line; ``shapes`` is a directory for configurations."""
    for name, shape in SHAPES.items():
        Qwen2Config(**shape).save_pretrained(shapes / name)
    for title, choices in CHOICES.items():
        yield f"### {title}\n\n"
        for choice in choices:
            yield from table(choice, str(shapes / choice.model))


def table(choice: Choice, model: str) -> Iterator[str]:
    """One choice: its settings, and a row for each stage."""
    sections = {"common": choice.common | {"dtype": "bfloat16"}, "psi, theta, dpo": choice.training}
    for section, settings in sections.items():
        yield f"- `{section}: {{{', '.join(f'{name}: {_yaml(value)}' for name, value in settings.items())}}}`\n"
    yield f"\n| GiB on each GPU | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}\n"
    lora = choice.training["lora"]
    adapted, plain = (shell(model, own and LoraParams(**own).model_dump_json()) for own in (lora, None))
    for stage, (cls, more) in STAGES.items():
        settings = {name: value for name, value in (choice.common | choice.training | more).items() if name in cls.model_fields}
        memory, afterwards = needs(cls.parse(settings), adapted if "lora" in settings else plain)
        trained = memory.adapters + memory.critic + memory.optimizer
        parts = (memory.weights, memory.frozen_copy, trained, memory.exchange, memory.kv_cache, memory.logits, memory.training)
        cells = [gib(size) if size else "" for size in (*parts, memory.scoring, memory.loading)]
        yield f"| {stage} | {' | '.join([*cells, *(_peak(part, choice.gpu) for part in (memory, afterwards))])} |\n"
    yield "\n"


@lru_cache(maxsize=2)
def shell(model: str, lora: str | None) -> Any:
    """The model on the meta device; it takes seconds to make."""
    return ghost(model, LoraParams.model_validate_json(lora) if lora else None)


def needs(params: ModelStageParams, model: Any) -> tuple[Memory, Memory | None]:
    """What a stage needs while it trains, and of several processes the notebook's own afterwards."""
    sampled = 0 if isinstance(params, ThetaParams) else params.batch_size
    sharing = Sharing(params.processes, params.sharded) if isinstance(params, TrainingStageParams) else ALONE
    if sharing == ALONE:
        return stage_memory(params, model, TOKENS, sampled), None
    return stage_memory(params, model, TOKENS, sampled, sharing), after_training(stage_memory(params, model, TOKENS, sampled))


def _peak(memory: Memory | None, gpu: float) -> str:
    if memory is None:
        return ""
    return f"**{gib(memory.total)}**" + " too much" * (memory.total > (1 - SPARE) * gpu * GIB)


def _yaml(value: Any) -> str:
    return "null" if value is None else str(value).replace("'", "")


def page(shapes: Path) -> str:
    """The page with its tables made anew."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + "".join(tables(shapes)) + END + rest.partition(END)[2]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        PAGE.write_text(page(Path(directory)), encoding="utf-8")
