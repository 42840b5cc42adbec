"""A task small enough to enumerate: vocabulary of 6, rationales of at most 3 tokens, a real (random) transformer.

Tokens: ``a b`` write rationales, ``|`` is the boundary, ``.`` the end token; the questions are texts of ``a`` and ``b``.
"""

import itertools
import math

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from brite_lib.likelihood import score
from brite_lib.template import RationaleTemplate, TemplateFormats

VOCABULARY = ["a", "b", "|", ".", "c", "^"]
MAX_RATIONALE = 3
QUESTIONS = ["a", "bb", "aba"]


def template() -> RationaleTemplate:
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(VOCABULARY)}, unk_token="^"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=".", pad_token="^")
    formats = TemplateFormats(prompt="^{question}", boundary="|", answer="{answer}", chat=False)
    return RationaleTemplate(tokenizer, formats)


def model(seed: int = 0, scale: float = 2.0) -> LlamaForCausalLM:
    """A random transformer with opinions: larger weights make its distributions differ from uniform."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        bos_token_id=None,
        eos_token_id=3,
        pad_token_id=5,
    )
    network = LlamaForCausalLM(config)
    with torch.no_grad():
        network.lm_head.weight.mul_(scale)
    return network.eval()


def problems(answer: str = "a") -> list[dict[str, str]]:
    return [{"id": f"q{i}", "question": question, "answer": answer} for i, question in enumerate(QUESTIONS)]


def completions(rules: RationaleTemplate, with_answers: bool = False, max_answer: int = 1) -> list[list[int]]:
    """Every completion that can be sampled: z of at most 3 tokens (and y of at most ``max_answer``), or one cut off."""
    boundary, stop = rules.boundary_ids[0], rules.end_id
    found = []
    for length in range(1, MAX_RATIONALE + 1):
        for ids in itertools.product(range(len(VOCABULARY)), repeat=length):
            early = any(token in (boundary, stop) for token in ids[:-1])
            if not early and (ids[-1] in (boundary, stop) or length == MAX_RATIONALE):
                found.append(list(ids))
    if not with_answers:
        return found
    finished = [ids for ids in found if ids[-1] == boundary]
    answers = [
        list(ids)
        for length in range(1, max_answer + 1)
        for ids in itertools.product(range(len(VOCABULARY)), repeat=length)
        if stop not in ids[:-1] and (ids[-1] == stop or length == max_answer)
    ]
    return [ids for ids in found if ids[-1] != boundary] + [z + y for z in finished for y in answers]


def law(network: nn.Module, prompt: list[int], sequences: list[list[int]]) -> Tensor:
    """log-probability of each completion under a model, (n,)."""
    return torch.stack([values.sum() for values in score(network, [prompt] * len(sequences), sequences, [[]] * len(sequences)).rationale])


def target(log_prior: Tensor, terminal: Tensor, kl_coef: float = 1.0) -> Tensor:
    """The optimum Q ∝ P(z)·exp(terminal / c), (n,)."""
    return torch.softmax(log_prior + terminal / kl_coef, 0)


def total_variation(p: Tensor, q: Tensor) -> float:
    assert math.isclose(p.sum().item(), 1, abs_tol=1e-4) and math.isclose(q.sum().item(), 1, abs_tol=1e-4)
    return 0.5 * (p - q).abs().sum().item()
