"""Model directories as the papers' models come, at a random tiny size: architecture, tokenizer shape, special tokens, chat template.

A tokenizer is of one of three shapes: *byte-level* (Llama-3, Qwen, DeepSeek: a space belongs to the word behind it, nothing is
added), *metaspace* (Mistral, Phi: SentencePiece with a space put before every text, a line break is a byte) and *gemma*
(SentencePiece without that space).
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedTokenizerFast

SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
}  # fmt: skip
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LLAMA3_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN_WORDS = LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")

ALTERNATE = (
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate: user, assistant, user, …') }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INSTRUCT = (
    "{{ bos_token }}" + ALTERNATE + "{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% else %} {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
TURNS = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('there is no system role') }}{% endif %}"
    + ALTERNATE
    + "<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n{{ message['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
SECTIONS = (
    "{{ bos_token }}You write programs.\n{% for message in messages %}{% if message['role'] == 'user' %}### Instruction:\n"
    "{{ message['content'] }}\n{% else %}### Response:\n{{ message['content'] }}\n<|EOT|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)
BARS = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """What tells one family from another; ``special`` are its special tokens, ``class_name`` the tokenizer class that its files name."""

    architecture: str
    shape: str
    special: dict[str, str]  # bos_token, eos_token, pad_token
    more_special: list[str]
    chat_template: str
    class_name: str = "PreTrainedTokenizerFast"
    config: dict = field(default_factory=dict)
    words: str = LLAMA3_WORDS  # byte-level: how a text is cut before merges


_END_OF_TEXT = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
_GEMMA_SPECIAL = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
_GEMMA = {"special": _GEMMA_SPECIAL, "more_special": ["<start_of_turn>", "<end_of_turn>"], "chat_template": TURNS}
_SENTENCE = "<｜{}▁of▁sentence｜>"
FAMILIES = {
    "mistral": Family("mistral", "metaspace", {"bos_token": "<s>", "eos_token": "</s>"}, [], INSTRUCT, "LlamaTokenizer"),
    "gemma": Family("gemma", "gemma", class_name="GemmaTokenizer", config={"head_dim": 16}, **_GEMMA),
    "gemma2": Family(
        "gemma2", "gemma", class_name="GemmaTokenizer", config={"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 64}, **_GEMMA
    ),
    "llama3": Family("llama", "byte-level", _END_OF_TEXT, ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"], HEADERS),
    "qwen2": Family(
        "qwen2", "byte-level", {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}, ["<|im_start|>", "<|im_end|>"], CHATML,
        "Qwen2Tokenizer", words=QWEN_WORDS,
    ),
    "deepseek-coder": Family(
        "llama", "byte-level", {"bos_token": _SENTENCE.format("begin"), "eos_token": "<|EOT|>", "pad_token": _SENTENCE.format("end")}, [],
        SECTIONS, "LlamaTokenizerFast",
    ),
    "phi3": Family(
        "phi3", "metaspace", {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"], BARS, "LlamaTokenizer",
    ),
}  # fmt: skip


def build(family: Family, directory: str | Path, texts: Iterable[str], merges: int = 150, seed: int = 0) -> Path:
    """Write the model directory (a few ten thousand parameters, a tokenizer trained on ``texts``) and return it."""
    directory = Path(directory)
    core = {"byte-level": byte_level, "metaspace": metaspace, "gemma": gemma}[family.shape](family, list(texts), merges)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, extra_special_tokens=family.more_special, **family.special)
    tokenizer.chat_template = family.chat_template
    torch.manual_seed(seed)
    ids = {f"{name}_id": getattr(tokenizer, f"{name}_id") for name in ("bos_token", "eos_token", "pad_token")}
    config = CONFIG_MAPPING[family.architecture](vocab_size=len(tokenizer), **SHAPE, **ids, **family.config)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    settings = directory / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"tokenizer_class": family.class_name}))
    return directory


def byte_level(family: Family, texts: list[str], merges: int) -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(family.words), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    special = [*dict.fromkeys(family.special.values()), *family.more_special]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = len(special) + len(alphabet) + merges
    core.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    return _with_bos(core, family)


def metaspace(family: Family, texts: list[str], merges: int) -> Tokenizer:
    core = _sentencepiece(family, texts, merges, prefix=True)
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return _with_bos(core, family)


def gemma(family: Family, texts: list[str], merges: int) -> Tokenizer:
    core = _sentencepiece(family, texts, merges, prefix=False)
    core.normalizer = normalizers.Replace(" ", "▁")
    core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _with_bos(core, family)


def _sentencepiece(family: Family, texts: list[str], merges: int, prefix: bool) -> Tokenizer:
    """BPE over characters, ▁ for a space, bytes for what has no token; a line break is one of these in Mistral, a token in Gemma."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always" if prefix else "never")
    lines = [line for text in texts for line in text.split("\n")]
    trained.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=merges + 100, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    special = [*dict.fromkeys([*family.special.values(), "<unk>", *family.more_special])]
    tokens = [*special, *BYTES, *([] if prefix else ["\n", "\n\n"]), *model["vocab"]]
    merged = [tuple(pair) for pair in model["merges"]] + ([] if prefix else [("\n", "\n")])
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merged, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    core.add_special_tokens(special)
    return core


def _with_bos(core: Tokenizer, family: Family) -> Tokenizer:
    if bos := family.special.get("bos_token"):
        core.post_processor = processors.TemplateProcessing(f"{bos} $A", f"{bos} $A {bos} $B", [(bos, core.token_to_id(bos))])
    return core
