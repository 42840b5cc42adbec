"""Multiple choice: the letter of the option that a text chooses."""

import re
from collections.abc import Sequence

from brite_lib.verify.extract import AFTERWARDS, announced, boxed

LETTERS = "ABCDEFGHIJ"
MARKUP = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s?(?=\{)|[{}$*_`]|\\[()\[\]]|<[^<>]{0,20}>")
ALONE = re.compile(r"\W*+(?:(?:option|choice|answer|letter)\W++)?([A-Ja-j])\W*+", re.IGNORECASE)
# "B. because", "(b) text", "B, since", "B is", "A because": a letter that a text begins with.
LEADING = re.compile(
    r"\W{0,9}(?:(?:option|choice|answer|letter)\W{1,9})?"
    r"(?:[(\[]([A-Ja-j])[)\]]|([A-Ja-j])[).:,]|([A-J])(?!['’\w]))(?![)\].:,]?\s+is\s+(?:not|wrong|false|incorrect)\b)",
    re.IGNORECASE,
)
# A capital alone or any letter in brackets; "A" before a small word is the article, a lone "I" the pronoun.
LETTER = re.compile(
    r"[(\[]([A-Ja-j])[)\]]|(?<![\w'’])([B-HJ])(?![\w'’])|"
    r"(?<![\w'’])(A)(?![\w'’])(?!\s+(?!because|since|as|is|and|or)[a-z])"
)
TWO = re.compile(r"\W{0,9}(?:[Bb]oth\W{1,9})?[A-J]\W{0,9}(?:\s(?:and|or)\s|[,&/])\W{0,9}[A-J](?!\w)\W*+")


def chosen(text: str, choices: Sequence[str] | None = None) -> str | None:
    """The letter of the chosen option: from the last box, else from what is announced, else from the whole text.

    In each, a letter alone (``B``, ``(b)``, ``option B``) comes before an option's own text (compared whole, without case,
    punctuation and articles), and that before a letter that begins or is mentioned last.
    """
    known = LETTERS[: len(choices)] if choices else LETTERS
    box = boxed(text)
    clause = (announced(text) or "").partition("\n")[0]
    sources = [box] if box is not None else [AFTERWARDS.split(clause, maxsplit=1)[0], clause, text]
    for source in sources:
        letter = _letter(MARKUP.sub("", source).strip(), choices or ())
        if letter is not None:
            return letter if letter in known else None
    return None


def _letter(text: str, choices: Sequence[str]) -> str | None:
    if alone := ALONE.fullmatch(text):
        return alone[1].upper() if alone[1] != "i" else None
    same = [i for i, option in enumerate(choices[: len(LETTERS)]) if _words(option) and _words(text) == _words(option)]
    if same:  # Rr and RR have the same words
        return LETTERS[next((i for i in same if _bare(choices[i]) == _bare(text)), same[0])]
    if TWO.fullmatch(text):
        return None
    start = None if TWO.match(text) else LEADING.match(text)
    if start and (start[1] or start[2] or _is_letter(start[3], text[start.end() :])):
        return (start[1] or start[2] or start[3]).upper()
    if choices:  # a word of an option, as in "vitamin A", is no letter
        return None if len(text.split()) <= 3 else _mentioned(text)
    return _mentioned(text)


def _is_letter(letter: str, rest: str) -> bool:
    return letter in LETTERS and (letter not in "AI" or not re.match(r"\s+(?!because|since|as|is)[a-z]", rest)) and letter + rest != "I"


def _mentioned(text: str) -> str | None:
    found = ["".join(groups) for groups in LETTER.findall(text)]
    return found[-1].upper() if found else None


def _bare(text: str) -> str:
    return MARKUP.sub("", text).strip(" .")


def _words(text: str) -> str:
    words = re.findall(r"[^\W_]+(?:[.,/]\d+)*|[-+−–√π°%$<>=^]", MARKUP.sub("", text).casefold())
    return " ".join(word for word in words if word not in ("a", "an", "the"))
