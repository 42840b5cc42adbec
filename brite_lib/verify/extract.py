"""Where a text states its final answer. Every search is linear in the length of the text."""

import re

# What makes a box, and what announces an answer in words; the last one of a text counts.
BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*")
EMPTY_BOX = re.compile(rf"\${{0,2}}{BOX.pattern}\{{\s*\}}\${{0,2}}")
ANNOUNCED = re.compile(
    r"""<answer>\s* | (?<!\#)\#\#\#\#(?!\#)[ \t]*+(?!\W{0,5}(?:step|case|part)\b)      # GSM8K's mark, unless it opens a Markdown heading
    | \b(?:answers?|options?|choices?)\b (?:\s{1,3}[\w'’]{1,20}){0,6}? (?: [*_\s]{0,4}(?:\b(?:is|are)\b|:|=) | [*_]{0,3}\n )
      (?:[*_:\s]|\b(?:is|are)\b)*""",
    re.VERBOSE | re.IGNORECASE,
)
# A sentence ends, or goes on to something that is not the answer.
AFTERWARDS = re.compile(
    r"(?<=[^.])\.(?=\s+(?:[A-Z]|$))|,?\s+(?:because|since|as|so|which)\b|\s\((?!sin|cos|tan|log)[a-z]{3,}", re.IGNORECASE
)
SENTENCE_END = re.compile(r"(?<=[\d$)}\]])\.\s+(?=[A-Z][a-z]+[\s,])")  # of one that ends in mathematics
OPENED = {"$$": "$$", "\\[": "\\]", "\\(": "\\)", "$": "$"}
HEDGE = re.compile(  # "Result: ", "Therefore, ", "approximately "
    r"(?:[A-Z][a-z]+(?:\s[a-z]+){0,3}:\s+)?"
    r"(?:(?:so|thus|hence|therefore|then)\b,?\s*)?(?:(?:approximately|about|roughly|exactly|equal to)\s+)?",
    re.IGNORECASE,
)
# Up to the next mark of its kind: of many that nothing closes, each would otherwise be searched to the end of the line.
FORMULA = re.compile(r"(?<!\\)\$\$?(?:[^$\\]|\\[\s\S])+\$\$?|\\\((?:(?!\\\().)+?\\\)|\\\[(?:(?!\\\[).)+?\\\]")
BRACE = re.compile(r"\\[\s\S]|[{}]")
WORD = re.compile(r"(?:^|(?<=\s))[A-Za-z]{2,}(?=[\s.,:;]|$)")
LAST_NUMBER = re.compile(r"(?<![\w.])[-−]?\d[\d,]*+(?:\.\d++)?(?:/\d++)?")


def boxed(text: str) -> str | None:
    """The content of the last box that is not empty; an unclosed one ends with its line or formula."""
    end = len(text)
    for box in reversed(list(BOX.finditer(text))):
        start, braced = box.end(), text.startswith("{", box.end())
        close = closing_brace(text, start, end) if braced else None
        if braced and close is None:
            end = box.start()  # what is open where a box opens that nothing closes stays open too
        content = text[start + 1 : close] if close else _line(text[start + braced :]).partition("$")[0]
        if content := content.strip():
            return content
    return None


def closing_brace(text: str, start: int, end: int) -> int | None:
    """The place of the brace that closes the one at ``start``; None if there is none before ``end``."""
    depth = 0
    for mark in BRACE.finditer(text, start, end):
        depth += {"{": 1, "}": -1}.get(mark[0], 0)
        if depth == 0:
            return mark.start()
    return None


def announced(text: str) -> str | None:
    """The rest of the text after the last "####", "answer is", "Final answer:", ``<answer>`` …; None if nothing announces an answer."""
    ends = [match.end() for match in ANNOUNCED.finditer(text)]
    return text[ends[-1] :].partition("</answer>")[0].strip() or None if ends else None


def statement(rest: str) -> str:
    """What an announcement announces: one formula (or several, joined by commas, and, or), else the first clause."""
    for opening, closing in OPENED.items():
        if rest.startswith(opening):
            end = _closing(closing).search(rest, len(opening))
            if not end:
                break
            formula, after = rest[len(opening) : end.start()], rest[end.end() :]
            joined = re.match(r"\s*(?:,\s*(?:and|or)?|;|and|or)\s*(?=\$|\\\()", after)
            unit = re.match(r"\s*(?:\\?%|percent\b|degrees\b)", after)
            if joined and (further := statement(after[joined.end() :])):
                return f"{opening}{formula}{closing}, {further}"
            return f"{opening}{formula}{closing}{unit[0] if unit else ''}"
    lines = rest.splitlines(keepends=True)
    return AFTERWARDS.split(_whole(lines, 0, 1), maxsplit=1)[0].strip()


def plain(text: str) -> str:
    """Without Markdown's stars, a final full stop, and one pair of formula marks around the whole."""
    text = text.strip().strip("*`").strip().removesuffix(".").strip().strip("*`").strip()
    for opening, closing in OPENED.items():
        inner = text[len(opening) : -len(closing)]
        if text.startswith(opening) and text.endswith(closing) and not _closing(opening).search(inner) and inner.strip():
            return inner.strip()
    return text


def math_answer(text: str) -> str | None:
    """The last box, else what is announced, else the last line: whole if it is no prose, else its last formula or number."""
    if (content := boxed(text)) is not None:
        return plain(announced(content) or content) or None
    if (rest := announced(text)) and (answer := plain(statement(HEDGE.sub("", rest, count=1)))):
        return answer
    lines = [line for line in EMPTY_BOX.sub("", text).splitlines(keepends=True) if line.strip(" \t\r\n`")]
    line = _whole(lines, len(lines) - 1, -1).strip()
    sentences = SENTENCE_END.split(line)
    line = next((sentence for sentence in reversed(sentences) if re.search(r"[\d$\\]", sentence)), line)
    line = line[HEDGE.match(line).end() :]
    subject, _, rest = line.partition(" is ")
    if not WORD.search(FORMULA.sub(" ", subject)) and rest and not re.search(r"[\d$\\]", rest):
        line = subject  # "5 is the answer"
    formulas = list(FORMULA.finditer(line))
    words = WORD.findall(FORMULA.sub(" ", line))
    if re.match(r"[A-Za-z]{2,}[\s,]", line) and len(words) >= (1 if formulas else 2):
        if formulas:
            return plain(line[_first_of_last_group(line, formulas) : formulas[-1].end()])
        if numbers := LAST_NUMBER.findall(line) or LAST_NUMBER.findall(text):
            return numbers[-1]
    return plain(line) or None


def _first_of_last_group(line: str, formulas: list[re.Match[str]]) -> int:
    """Where the formulas begin that commas, "and", "or" join to the last one."""
    start = formulas[-1].start()
    for formula in reversed(formulas[:-1]):
        if not re.fullmatch(r"\s*(?:,\s*(?:and|or)?|;|and|or)\s*", line[formula.end() : start]):
            break
        start = formula.start()
    return start


def _whole(lines: list[str], start: int, step: int) -> str:
    """The line at ``start`` and those after it (``step`` 1) or before it (-1) that belong to the same formula or matrix."""
    taken: list[str] = []
    for line in lines[start::step][:40] if lines else []:
        taken.append(line)
        block = "".join(taken[::step])
        pairs = (("{", "}"), ("\\begin", "\\end"), ("\\[", "\\]"), ("\\(", "\\)"))
        if all(block.count(opening) == block.count(closing) for opening, closing in pairs) and block.count("$$") % 2 == 0:
            return block
    return lines[start] if lines else ""


def _closing(mark: str) -> re.Pattern[str]:
    return re.compile(r"(?<!\\)" + re.escape(mark))


def _line(text: str) -> str:
    return text.lstrip().partition("\n")[0]
