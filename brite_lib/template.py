"""How a question, a rationale z and an answer y are written as tokens, and where z ends and y begins.

One rule for sampling, scoring, training and evaluation (design section 4, "Boundaries"): z runs through the
token that completes the *boundary* text; y is tokenised on its own, never merged with z, and followed by the
end-of-turn token. A completion is *unfinished* when an end token comes before the boundary, or when the token
that completes the boundary also holds text beyond it.
"""

import json
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jinja2 import TemplateError
from pydantic import Field, model_validator

from brite_lib.errors import InputError
from brite_lib.params import Strict, resolve_path, suggestion

FILE_NAME = "rationale_template.json"


class TemplateFormats(Strict):
    """The texts of a :class:`RationaleTemplate`; ``{question}`` and the like are filled in."""

    prompt: str = Field("{question}", description="x")
    hint_prompt: str = Field(
        "{question}\n\n(The correct answer is {answer}. Explain how to get there.)", description="x with y* shown (STaR)"
    )
    retry_prompt: str = Field(
        "{question}\n\nThese attempts were rejected:\n{attempts}\nTry again.", description="x after rejected attempts (DRR)"
    )
    attempt: str = Field("{completion}\n", description="one rejected attempt")
    judge_prompt: str = Field(
        "{question}\n\nProposed solution:\n{completion}\n\nIs it right? Answer accept or reject.", description="x, z, y to be judged"
    )
    verdicts: tuple[str, str] = Field(("accept", "reject"), description="texts of the two judgements")
    boundary: str = Field("\nThe answer is:", min_length=1, description="text that ends z")
    answer: str = Field(" {answer}", description="y, written after the boundary")
    chat: bool | Literal["auto"] = Field("auto", description="use the tokenizer's chat template; auto: if it has one")
    system: str | None = Field(None, description="system message; chat only")

    @model_validator(mode="after")
    def _placeholders(self) -> "TemplateFormats":
        needed = {
            "prompt": ("question",),
            "hint_prompt": ("question", "answer"),
            "retry_prompt": ("question", "attempts"),
            "attempt": ("completion",),
            "judge_prompt": ("question", "completion"),
            "answer": ("answer",),
        }
        for field, names in needed.items():
            try:
                getattr(self, field).format(**dict.fromkeys(names, ""))
            except (KeyError, IndexError, ValueError) as error:
                raise ValueError(
                    f"{field}: only {', '.join(f'{{{name}}}' for name in names)} can be filled in, write a brace as {{{{ ({error})"
                ) from None
            if f"{{{names[0]}}}" not in getattr(self, field):
                raise ValueError(f"{field}: must contain {{{names[0]}}}")
        return self


STEP_BY_STEP = '\n\nLet\'s think step by step, and end with a line "The answer is: <answer>".'
PRESETS = {
    "chat": TemplateFormats(prompt="{question}" + STEP_BY_STEP),
    "plain": TemplateFormats(prompt="Question: {question}\nLet's think step by step.\n", chat=False),
}


@dataclass(frozen=True)
class Completion:
    """A sampled completion, cut into z and y.

    ``rationale_ids`` holds z through its boundary, or all sampled tokens when it is unfinished; ``answer_ids`` the
    sampled y with its end token (empty if no y was sampled). ``finished`` is about z alone; ``ended`` says that y
    has its end token too.
    """

    rationale_ids: list[int]
    answer_ids: list[int]
    rationale: str
    answer: str | None
    finished: bool
    ended: bool


class RationaleTemplate:
    """Tokens of prompts, rationales and answers for one tokenizer.

    Args:
        tokenizer: a fast Hugging Face tokenizer.
        formats: the texts; None: what ``auto`` means for the directory that the tokenizer came from.

    Raises:
        InputError: if the tokenizer has no end token, no chat template where one is asked for, or one that refuses ``system``.
    """

    def __init__(self, tokenizer: Any, formats: TemplateFormats | None = None):
        self.tokenizer = tokenizer
        self.formats = formats or _automatic(tokenizer, tokenizer.name_or_path)
        has_chat = getattr(tokenizer, "chat_template", None) is not None
        self.chat = has_chat if self.formats.chat == "auto" else bool(self.formats.chat)
        if self.chat and not has_chat:
            raise InputError("template.chat: the tokenizer has no chat template; set template: plain, or chat: false in its fields")
        if tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no eos token, so no answer could ever end")
        self._lead, self.end_id = self._assistant_turn() if self.chat else ("", tokenizer.eos_token_id)
        self.stop_ids: tuple[int, ...] = tuple(sorted({self.end_id, tokenizer.eos_token_id}))
        self.pad_id: int = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._texts: dict[int, str] = {}
        self.boundary_ids: list[int] = self._encode_inside(self.formats.boundary)

    @classmethod
    def load(cls, tokenizer: Any, template: str | dict[str, Any], model: str | Path) -> "RationaleTemplate":
        """The template that the ``template`` parameter names; ``auto`` takes the model directory's own, else ``chat`` or ``plain``."""
        if isinstance(template, dict):
            return cls(tokenizer, TemplateFormats.parse(template, where="template"))
        if template == "auto":
            return cls(tokenizer, _automatic(tokenizer, model))
        if template not in PRESETS:
            raise InputError(f"template: {template!r} is unknown{suggestion(template, ['auto', *PRESETS])}")
        return cls(tokenizer, PRESETS[template])

    def save(self, directory: Path) -> None:
        """Write the texts beside a model, where ``auto`` finds them."""
        (directory / FILE_NAME).write_text(self.formats.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def prompt_ids(self, question: str, hint: str | None = None, rejected: Sequence[str] = ()) -> list[int]:
        """Token ids of x; with the answer shown as a hint, or after rejected attempts (texts as sampled)."""
        if hint is not None:
            return self._prompt(self.formats.hint_prompt.format(question=question, answer=hint))
        if rejected:
            attempts = "".join(self.formats.attempt.format(completion=text) for text in rejected)
            return self._prompt(self.formats.retry_prompt.format(question=question, attempts=attempts))
        return self._prompt(self.formats.prompt.format(question=question))

    def judge_prompt_ids(self, question: str, completion: str) -> list[int]:
        """Token ids of a prompt that asks for a verdict on a completion."""
        return self._prompt(self.formats.judge_prompt.format(question=question, completion=completion))

    def verdict_ids(self, accept: bool) -> list[int]:
        """Token ids of a verdict with its end token."""
        return [*self._encode_inside(self._lead + self.formats.verdicts[0 if accept else 1]), self.end_id]

    def rationale_ids(self, rationale: str) -> list[int]:
        """Token ids of a written rationale through its boundary (for human rationales; sampled ones keep their ids).

        It ends at the boundary, as a sampled one does, if it holds one itself (a box in a solution of MATH).
        """
        return self._encode_inside(self._lead + rationale.partition(self.formats.boundary)[0] + self.formats.boundary)

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids of y, tokenised on its own, with the end token."""
        return [*self._encode_inside(self.formats.answer.format(answer=answer)), self.end_id]

    def completion_text(self, rationale: str, answer: str) -> str:
        """z, boundary and y as text, as :meth:`prompt_ids` and :meth:`judge_prompt_ids` take it."""
        return rationale + self.formats.boundary + self.formats.answer.format(answer=answer)

    def split(
        self, completion_ids: Sequence[int], max_rationale_tokens: int | None = None, max_answer_tokens: int | None = None
    ) -> Completion:
        """Cut sampled tokens into z and y; everything after the first end token is dropped.

        The boundary must be complete within ``max_rationale_tokens``, the end token of y within ``max_answer_tokens``
        after it, whatever the sampler's common limit was.
        """
        ids = list(completion_ids)
        ended = next((i for i, token in enumerate(ids) if token in self.stop_ids), None)
        if ended is not None:
            ids = ids[: ended + 1]
        body = ids if ended is None else ids[:-1]
        cut = self.boundary_end(body)
        limit = len(ids) if max_rationale_tokens is None else max_rationale_tokens
        if cut is None or cut > limit or not self.decode(body[:cut]).endswith(self.formats.boundary):
            kept = ids[:limit]
            text = self.decode(kept[:-1] if kept and kept[-1] in self.stop_ids else kept)
            return Completion(kept, [], text, None, finished=False, ended=False)
        answer_ids = ids[cut:] if max_answer_tokens is None else ids[cut : cut + max_answer_tokens]
        ended_in_time = bool(answer_ids) and answer_ids[-1] in self.stop_ids
        answer = self.decode(answer_ids[:-1] if ended_in_time else answer_ids).strip() if answer_ids else None
        rationale = self.decode(body[:cut]).removesuffix(self.formats.boundary)
        return Completion(ids[:cut], answer_ids, rationale, answer, finished=True, ended=ended_in_time)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens, special tokens shown and spaces untouched."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """One text per token, for display."""
        for token in ids:
            if token not in self._texts:
                text, written = self.decode([token]), self.tokenizer.convert_ids_to_tokens(token)
                eaten = written.startswith("▁") and not text.startswith(" ")  # some decoders take the first space off any text
                self._texts[token] = " " * eaten + text
        return [self._texts[token] for token in ids]

    def boundary_end(self, ids: list[int]) -> int | None:
        """Number of tokens after which the text first holds the boundary, None if it never does."""
        if self.formats.boundary not in self.decode(ids):
            return None
        # Whether a prefix holds the boundary is monotone in its length.
        return 1 + bisect_left(range(1, len(ids)), True, key=lambda length: self.formats.boundary in self.decode(ids[:length]))

    def boundary_start(self, ids: list[int]) -> int:
        """Number of tokens before the boundary that ends a finished z; a token that straddles its beginning belongs to it."""
        start = len(self.decode(ids)) - len(self.formats.boundary)
        # The text of a prefix grows with its length.
        return bisect_right(range(1, len(ids) + 1), start, key=lambda length: len(self.decode(ids[:length])))

    def _prompt(self, text: str) -> list[int]:
        if not self.chat:
            return self.tokenizer(text, add_special_tokens=True)["input_ids"]
        return self._encode(self._rendered([{"role": "user", "content": text}], add_generation_prompt=True))

    def _rendered(self, messages: list[dict[str, str]], add_generation_prompt: bool = False) -> str:
        system = [{"role": "system", "content": self.formats.system}] if self.formats.system else []
        try:
            return self.tokenizer.apply_chat_template([*system, *messages], tokenize=False, add_generation_prompt=add_generation_prompt)
        except TemplateError as error:  # Gemma's and Mistral's raise one at a system message
            what = "template.system" if system else "template"
            raise InputError(f"{what}: the tokenizer's chat template refuses it: {' '.join(str(error).split())}") from None

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _encode_inside(self, text: str) -> list[int]:
        """Token ids of a text that does not stand at the beginning, where SentencePiece (Mistral, Phi) would put one more space."""
        before = self._encode("\n")
        ids = self._encode("\n" + text)
        return ids[len(before) :] if ids[: len(before)] == before else self._encode(text)

    def _assistant_turn(self) -> tuple[str, int]:
        """The space that the chat template puts before what an assistant says (Mistral's), and the special token that closes it:
        eos is another one in Gemma and base-derived tokenizers."""
        mark, user = "the-assistant-says-this", {"role": "user", "content": "x"}
        before, _, after = self._rendered([user, {"role": "assistant", "content": mark}]).rpartition(mark)
        lead = before.removeprefix(self._rendered([user], add_generation_prompt=True))
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        end = next((token for token in self._encode(after) if token in special), self.tokenizer.eos_token_id)
        return lead if lead.isspace() else "", end


def _automatic(tokenizer: Any, model: str | Path) -> TemplateFormats:
    """The texts that lie beside a model, else ``chat`` or ``plain``."""
    path = resolve_path(model) / FILE_NAME
    if path.is_file():
        return TemplateFormats.parse(json.loads(path.read_text(encoding="utf-8")), where=str(path))
    return PRESETS["chat" if getattr(tokenizer, "chat_template", None) else "plain"]
