"""likelihood.score against a plain full softmax, on six architectures (issue check 3)."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from brite_lib import likelihood
from brite_lib.errors import InputError
from brite_lib.likelihood import score

VOCABULARY = 50
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.3,
}  # fmt: skip
ARCHITECTURES = {
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=None)),
    "gemma": lambda: GemmaForCausalLM(GemmaConfig(**SHAPE, head_dim=8)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=5.0, attn_implementation="eager")),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**SHAPE)),
}
PROMPTS = [[1, 5, 9], [1, 7], [1, 2, 3, 4, 5, 6], [1, 0, 2]]  # pad and eos ids inside a prompt are tokens like others
RATIONALES = [[11, 12, 13], [14], [15, 16], [0, 2, 17, 18]]
ANSWERS = [[21, 2], [22, 23, 2], [], [2]]


def plain(model, prompt, rationale, answer):
    """log-probabilities from the full logits of one unpadded sequence."""
    ids = torch.tensor([[*prompt, *rationale, *answer]])
    with torch.no_grad():
        log_probs = model(input_ids=ids).logits[0].float().log_softmax(-1)
    values = log_probs[:-1].gather(-1, ids[0, 1:, None])[:, 0][len(prompt) - 1 :]
    return values[: len(rationale)], values[len(rationale) :]


@pytest.mark.parametrize("adapter", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_the_full_softmax(architecture, batch_size, side, adapter):
    torch.manual_seed(0)
    model = ARCHITECTURES[architecture]().eval()
    if adapter:
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    scores = score(model, PROMPTS, RATIONALES, ANSWERS, batch_size, side)
    for i, (prompt, rationale, answer) in enumerate(zip(PROMPTS, RATIONALES, ANSWERS, strict=True)):
        wanted_rationale, wanted_answer = plain(model, prompt, rationale, answer)
        assert scores.rationale[i].shape == wanted_rationale.shape and scores.answer[i].shape == wanted_answer.shape
        assert torch.allclose(scores.rationale[i], wanted_rationale, atol=1e-4)
        assert torch.allclose(scores.answer[i], wanted_answer, atol=1e-4)


def test_the_adapter_matters():
    torch.manual_seed(0)
    model = get_peft_model(ARCHITECTURES["qwen2"](), LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    on = score(model, PROMPTS, RATIONALES, ANSWERS).rationale[0]
    with model.disable_adapter():
        off = score(model, PROMPTS, RATIONALES, ANSWERS).rationale[0]
    assert (on - off).abs().max() > 0.1


def test_the_mask_on_a_literal_example():
    """x = [1, 5], z = [11, 12], y = [21, 2]: four scored tokens, at the places 2 to 5, predicted from 1 to 4."""
    batch = likelihood.make_batch([[1, 5], [1]], [[11, 12, 21, 2], [13, 2]], torch.device("cpu"))
    assert batch.rows.tolist() == [0, 0, 0, 0, 1, 1]
    assert batch.columns.tolist() == [2, 3, 4, 5, 1, 2]
    assert batch.targets.tolist() == [11, 12, 21, 2, 13, 2]
    assert batch.padded.attention_mask.tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    left = likelihood.make_batch([[1, 5], [1]], [[11, 12, 21, 2], [13, 2]], torch.device("cpu"), "left")
    assert left.columns.tolist() == [2, 3, 4, 5, 4, 5] and left.targets.tolist() == batch.targets.tolist()
    assert left.padded.position_ids.tolist() == [[0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 1, 2]]


class Bigram(torch.nn.Module):
    """Predicts token t + 1 after t with probability 0.9: log-probabilities that can be written down."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(30, 30)
        self.head = torch.nn.Linear(30, 30, bias=False)
        self.config = LlamaConfig(vocab_size=30)
        with torch.no_grad():
            self.table.weight.copy_(torch.full((30, 30), 0.1 / 29).log())
            for token in range(29):
                self.table.weight[token, token + 1] = torch.tensor(0.9).log()
            self.head.weight.copy_(torch.eye(30))

    def get_decoder(self):
        return lambda input_ids, **_: type("Output", (), {"last_hidden_state": self.table(input_ids)})

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids):
        return type("Output", (), {"logits": self.head(self.table(input_ids))})


def test_first_and_last_tokens_belong_where_they_should():
    """The rationale's last token is the rationale's; the answer's first and last are the answer's."""
    scores = score(Bigram(), [[3, 4]], [[5, 9]], [[10, 20]])  # 4→5 likely, 5→9 not, 9→10 likely, 10→20 not
    likely, unlikely = torch.tensor(0.9).log(), torch.tensor(0.1 / 29).log()
    assert torch.allclose(scores.rationale[0], torch.stack([likely, unlikely]), atol=1e-5)
    assert torch.allclose(scores.answer[0], torch.stack([likely, unlikely]), atol=1e-5)


def test_chunks_change_nothing_but_memory(monkeypatch):
    torch.manual_seed(0)
    model = ARCHITECTURES["gemma2"]()
    batch = likelihood.make_batch(PROMPTS, [z + y for z, y in zip(RATIONALES, ANSWERS, strict=True)], torch.device("cpu"))

    def run():
        model.zero_grad()
        log_prob, entropy, _ = likelihood.token_log_probs(model, batch, entropy=True)
        log_prob.sum().backward()
        return log_prob.detach(), entropy, model.model.layers[0].mlp.up_proj.weight.grad.clone()

    whole = run()
    monkeypatch.setattr(likelihood, "MAX_LOGITS", 2 * VOCABULARY)  # two tokens at a time
    for one, other in zip(whole, run(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_an_unknown_logit_scale_is_refused():
    model = GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=8.0))
    with pytest.raises(InputError, match="GraniteForCausalLM"):
        score(model, PROMPTS, RATIONALES, ANSWERS)


def test_an_empty_prompt_and_a_missing_row_are_refused():
    with pytest.raises(InputError, match="row 2"):
        score(Bigram(), [[1], []], [[2], [2]], [[], []])
    with pytest.raises(InputError, match="found 2, 2 and 1 rows"):
        score(Bigram(), [[1], [1]], [[2], [2]], [[]])
