"""Plain numbers, as word problems have them: found in a text, and read as exact fractions."""

import re
from fractions import Fraction

from brite_lib.verify.extract import AFTERWARDS, announced, boxed

MAX_DIGITS = 1000  # of one number; what is longer is no answer, and Python reads at most 4300
DIGITS = r"(?:\d{1,3}(?:,\d{3})++|\d++)(?!,?\d)"
NUMBER = re.compile(
    rf"""(?<![\w^]) (?<!\^\{{) (?<!\d[.,])
    (?P<sign>(?<![\w)\]}}.])[-+]\s?)? (?:[$€£¥₹]\s?)? (?P<inner>(?<=[$€£¥₹])[-+])?
    (?P<value>{DIGITS}(?:\.\d++)?|\.\d++)
    (?: \s{{0,2}}[x×*·]\s{{0,2}}10\s?\^\s?\{{?(?P<power>[-+]?\d{{1,4}})\}}? | [eE](?P<exponent>[-+]?\d{{1,4}})(?!\w) )?
    (?: (?P<mixed>\s\d++/\d++) | \s?[/:]\s?(?P<divisor>{DIGITS}) )?
    (?!\s?\^|\s?\*\*\d|\.\d)""",
    re.VERBOSE,
)
FRACTION = re.compile(r"(\d?)\s?\\[dtc]?frac\s?(?:\{(-?\d+)\}\s?\{(\d+)\}|(\d)\s?(\d))")
CHARACTERS = str.maketrans(
    {**{chr(0xFF10 + digit): str(digit) for digit in range(10)}, "−": "-", "–": "-", "½": " 1/2", "¼": " 1/4", "¾": " 3/4", "⅓": " 1/3"}
    | {"⅔": " 2/3", "²": "^2", "³": "^3", "\u00a0": " ", "\u202f": " "}
)
LATEX = (
    (r"\\(?:times|cdot)(?![a-zA-Z])", " x "),
    (r"\{,\}|,\s?\\!\s?", ","),
    (r"(?<=\d)\\,(?=\d{3})", ","),
    (r"\\([$%])", r"\1"),
    (r"(?<!\w)_+(?=[\d$-])", ""),
)


def last_number(text: str) -> str | None:
    """The number that a text ends with or announces, as ``-1234.50``, ``3/4``, ``1 1/2`` or ``1.5e3``; None if there is none.

    A box that holds no number states an answer that is none. An announcement ("The answer is 3 * 6 = 18 dollars") is read up
    to its reason, its number is the first after the last "="; without one, the last number of the text counts.
    """
    box = boxed(text)
    if box is not None:
        return _stated(box)
    rest = announced(text)
    found = _stated(AFTERWARDS.split(rest.partition("\n")[0], maxsplit=1)[0]) if rest else None
    return found or next(iter(_numbers(text)[-1:]), None)


def value(text: str) -> Fraction | None:
    """The exact value of the number in a text, None if there is none, or it divides by 0, or is longer than any answer."""
    number = last_number(text)
    if number is None or len(number) > MAX_DIGITS:
        return None
    whole, _, fraction = number.rpartition(" ")
    numerator, _, divisor = fraction.partition("/")
    if divisor and int(divisor) == 0:
        return None
    size = Fraction(numerator) / Fraction(divisor or 1)
    return Fraction(whole) + (-size if whole.startswith("-") else size) if whole else size


def _stated(text: str) -> str | None:
    before, _, after = text.rpartition("=")
    return next(iter(_numbers(after) or _numbers(before)), None)


def _numbers(text: str) -> list[str]:
    text = text.translate(CHARACTERS)
    for pattern, replacement in LATEX:
        text = re.sub(pattern, replacement, text)
    text = FRACTION.sub(lambda match: f"{match[1]} {match[2] or match[4]}/{match[3] or match[5]}", text)
    if re.fullmatch(r"\W*\d{1,3}(?: \d{3})+\W*", text):
        text = re.sub(r"(?<=\d) (?=\d)", "", text)
    return [_written(match) for match in NUMBER.finditer(text)]


def _written(match: re.Match[str]) -> str:
    negative = "-" in (match["sign"] or "") or match["inner"] == "-"
    exponent = match["power"] or match["exponent"]
    parts = [match["value"].replace(",", ""), f"e{exponent}" if exponent else "", match["mixed"] or ""]
    divisor = f"/{match['divisor'].replace(',', '')}" if match["divisor"] else ""
    return ("-" if negative else "") + "".join(parts) + divisor
