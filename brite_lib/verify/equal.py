"""Whether two mathematical answers are equal: lists, brackets, units, words and names here, formulas in ``formulas.py``.

Everything here may take for ever on hostile input; :mod:`brite_lib.verify.pool` runs it in processes that can be killed.
"""

import re
from typing import NamedTuple

from brite_lib.verify.formulas import ROUNDING, factor, formulas_equal
from brite_lib.verify.latex import TEXT, compact, numeral
from brite_lib.verify.units import Unit, split_unit

_OPEN, _CLOSE = {"(": "(", "[": "[", r"\{": "{", "{": "{"}, {")": ")", "]": "]", r"\}": "}", "}": "}"}
_RELATION = re.compile(r"\\leq|\\geq|<|>|\\in(?![a-z])|\\neq")
_NAME = re.compile(  # x, x_1, f(x), \angle A, (x,y), \text{area}
    r"\\?[A-Za-z]+'*(?:\s?_\s?(?:\w|\{[^{}]*\}))?(?:\^\{-1\})?(?:\s?\([\w\s,+-]*\))?|"
    r"\\angle\s?[A-Z\s]+|\(\\?[a-zA-Z]+(?:_\w)?(?:,\s?\\?[a-zA-Z]+(?:_\w)?)+\)|\\text\{[^{}]*\}"
)
_FUNCTIONS = re.compile(
    r"\\(?:begin|end)\{[a-z]+\}|\\[a-zA-Z]+|"
    r"(?<![a-zA-Z])(?:sin|cos|tan|cot|sec|csc|log|exp|sqrt|frac|sinh|cosh|tanh|floor|gcd|lcm|max|min)(?![a-zA-Z])"
)
_BASED = re.compile(r"\(?([0-9A-F]*\d[0-9A-F]*)\)?\s?_\s?(?:\{\s?(?:\\text\{)?\s?(\w+)\s?\}?\s?\}|(\d))")
_BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9", "sixteen": "16"}


class Parts(NamedTuple):
    """An answer taken apart at its outermost commas. ``ends``: its brackets, "" for a bare list or a single answer."""

    ends: str
    items: list[str]


def equal(gold: str, guess: str) -> bool:
    """Whether two answers, as :func:`brite_lib.verify.latex.normalise` writes them, are equal (docs/verifiers.md has the rules)."""
    gold, guess = _condition(gold), _condition(guess)
    if (r"\begin" in gold) != (r"\begin" in guess):
        gold, guess = _tuples(gold), _tuples(guess)
    if compact(gold) == compact(guess):
        return True
    if not guess.strip():
        return False
    golds, guesses = _list(gold), _list(guess)
    if r"\cup" in gold + guess:
        return formulas_equal(*(r"\cup ".join(map(_set, parts)) for parts in (golds, guesses)))
    if len(golds) > 1 or len(guesses) > 1:
        if len(golds) == 1 or len(guesses) == 1:
            return _same_parts(_parts(gold), _parts(guess))
        return _same_members(golds, guesses)
    return _one_equal(golds[0], guesses[0])


def _condition(text: str) -> str:
    """The condition of a set ``\\{x \\mid x > 3\\}`` that an inequality describes; other answers as they are."""
    builder = re.fullmatch(r"\\\{\s*[a-z]\s*(?:\\in\s*\\mathbb\{R\}\s*)?(?:\||\\mid|\\vert|:)(.*)\\\}", text)
    return builder[1].strip() if builder and _RELATION.search(builder[1]) else text


def _tuples(text: str) -> str:
    """A matrix as a tuple of its rows, a vector as a tuple, also where it is written in square brackets as in Python."""
    matrix = re.fullmatch(r"\\begin\{[pb]?matrix\}(.*)\\end\{[pb]?matrix\}", text.strip())
    if not matrix:
        return text.replace("[", "(").replace("]", ")") if re.fullmatch(r"\[.*\]", text) else text
    rows = [row.split("&") for row in re.split(r"\\\\", matrix[1]) if row.strip()]
    if len(rows) == 1 or all(len(row) == 1 for row in rows):
        return f"({','.join(cell for row in rows for cell in row)})"
    return "(" + ",".join(f"({','.join(row)})" for row in rows) + ")"


def _one_equal(gold: str, guess: str) -> bool:
    """Two answers without commas outside of brackets."""
    if ("=" in gold or "=" in guess) and (verdict := _equations_equal(gold, guess)) is not None:
        return verdict
    gold, guess = (re.sub(r"^\\approx\s*", "", text) for text in (gold, guess))
    if _RELATION.search(gold) or _RELATION.search(guess):
        return _relations_equal(gold, guess)
    parts = _parts(gold), _parts(guess)
    if parts[0].ends or parts[1].ends:
        return _same_parts(*parts)
    if _BASED.fullmatch(gold) or _BASED.fullmatch(guess):
        return _numerals_equal(gold, guess)
    (gold, gold_unit), (guess, guess_unit) = split_unit(gold), split_unit(guess)
    if gold_unit and not guess_unit:
        guess, guess_unit = split_unit(guess, tight=True)
    if guess_unit and not gold_unit:
        gold, gold_unit = split_unit(gold, tight=True)
    if gold_unit or guess_unit:
        return _quantities_equal(gold, gold_unit, guess, guess_unit)
    if _is_text(gold) or _is_text(guess):
        return _as_text(gold) == _as_text(guess)
    ratios = _ratio(gold), _ratio(guess)
    if ratios != (gold, guess):
        return equal(*ratios)
    verdict = numbers_equal(gold, guess)
    return formulas_equal(gold, guess) if verdict is None else verdict


def numbers_equal(gold: str, guess: str) -> bool | None:
    """The verdict on two numerals, exact but for decimals with six places or more; None unless both are numerals."""
    right, value = numeral(gold), numeral(guess)
    if right is None or value is None:
        return None
    return right[0] == value[0] or ((right[1] or value[1]) and abs(right[0] - value[0]) <= ROUNDING * min(1, abs(right[0])))


def _split(text: str, separator: str) -> list[str]:
    """The pieces of a text between separators (a regular expression) outside of all brackets."""
    pieces, depth, start = [], 0, 0
    for mark in re.finditer(rf"\\begin(?=\{{)|\\end(?=\{{)|\\[{{}},;:\\ ]|[()\[\]{{}}]|{separator}", text):
        if re.fullmatch(r"\\[,;:\\ ]", mark[0]):
            continue  # spaces, and the end of a matrix row
        if mark[0] in _OPEN or mark[0] == r"\begin":
            depth += 1
        elif mark[0] in _CLOSE or mark[0] == r"\end":
            depth -= 1
        elif depth <= 0:
            pieces.append(text[start : mark.start()])
            start = mark.end()
    return [piece.strip() for piece in [*pieces, text[start:]] if piece.strip()]


def _list(text: str) -> list[str]:
    """The answers that a list names, one for a text that is none: at commas, semicolons, "and", "or"; ± are two answers."""
    items = _split(text, r"[,;]|\\text\{\s*,?\s*(?:and|or)\s*\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])")
    answers = []
    for item in items or [text]:
        if re.search(r"\\[pm][mp](?![a-z])", item) and r"\text" not in item:
            answers += [item.replace(r"\pm", "+").replace(r"\mp", "-"), item.replace(r"\pm", "-").replace(r"\mp", "+")]
        else:
            answers.append(item)
    names = {_assigned(answer)[0] for answer in answers[:1]}
    if len(answers) > 1 and None not in names and not any("=" in answer or _RELATION.search(answer) for answer in answers[1:]):
        answers[0] = _assigned(answers[0])[1]  # "x = 1, 2" lists the values of x
    return answers


def _parts(text: str) -> Parts:
    """The brackets around an answer and what is in them; brackets around a single answer that is no set are dropped."""
    text = text.strip()
    opening = next((mark for mark in (r"\{", "(", "[", "{") if text.startswith(mark)), None)
    closing = next((mark for mark in (r"\}", ")", "]", "}") if text.endswith(mark)), None)
    if opening is None or closing is None:
        items = _list(text)
        return Parts("" if len(items) < 2 else ",", items)
    inner = text[len(opening) : -len(closing)]
    depth = 0
    for mark in re.finditer(r"\\begin(?=\{)|\\end(?=\{)|\\[{}]|[()\[\]{}]", inner):
        depth += 1 if mark[0] in _OPEN or mark[0] == r"\begin" else -1
        if depth < 0:  # (a)(b): the two are no pair
            return Parts("", _list(text))
    items = _list(inner)
    if len(items) == 1 and (_OPEN[opening], _CLOSE[closing]) in (("(", ")"), ("{", "}")):
        return _parts(items[0]) if items[0] != text else Parts("", items)
    return Parts(_OPEN[opening] + _CLOSE[closing], items)


def _same_parts(gold: Parts, guess: Parts) -> bool:
    ends = {gold.ends, guess.ends} - {",", ""}
    if len(ends) == 2 or (len(ends) == 1 and ends & {"[)", "(]"} and gold.ends != guess.ends):
        return False
    if ends <= {"{}"}:
        return _same_members(gold.items, guess.items)
    same = len(gold.items) == len(guess.items)
    return same and all(equal(right, item) for right, item in zip(gold.items, guess.items, strict=True))


def _same_members(golds: list[str], guesses: list[str]) -> bool:
    """Every gold answer among the guesses and every guess among the gold answers, in any order."""
    alike = set(map(compact, golds)) & set(map(compact, guesses))
    return all(compact(gold) in alike or any(equal(gold, guess) for guess in guesses) for gold in golds) and all(
        compact(guess) in alike or any(equal(gold, guess) for gold in golds) for guess in guesses
    )


def _assigned(text: str) -> tuple[str | None, str]:
    """(name, value) of ``x = 5``, ``f(x) = … = 5`` or ``x \\approx 5``; the name is None for anything else."""
    *sides, last = _split(text, r"=|\\equiv(?![a-zA-Z])") or [text]
    exact, *rounded = _split(last, r"\\approx(?![a-zA-Z])") or [last]
    name, value = (sides[0], exact) if sides else (exact, rounded[-1]) if rounded else ("", text)
    return (compact(name), value) if _NAME.fullmatch(name) else (None, text)


def _equations_equal(gold: str, guess: str) -> bool | None:
    """The verdict on two answers of which one is an equation; None if neither is, after all."""
    (gold_name, gold_value), (guess_name, guess_value) = _assigned(gold), _assigned(guess)
    equations = [len(_split(text, "=")) > 1 for text in (gold, guess)]
    if not any(equations):
        return None
    if gold_name and gold_name == guess_name:
        return equal(gold_value, guess_value)
    if all(equations):
        return formulas_equal(*(f"{left}-({right})" for left, right in map(_sides, (gold, guess)))) or _proportional(gold, guess)
    if gold_name or guess_name:
        return equal(gold_value, guess_value)
    sides = _split(gold if equations[0] else guess, "=")
    if equations[1] and numeral(sides[-1]):  # "a + b = 7"
        return equal(gold, sides[-1])
    if any(re.search("[a-zA-Z]", _FUNCTIONS.sub("", side)) for side in sides):
        return False  # an equation in unknowns is no value
    return equal(sides[-1], guess) if equations[0] else equal(gold, sides[-1])


def _sides(equation: str) -> tuple[str, str]:
    sides = _split(equation, "=")
    return sides[0], sides[-1]


def _proportional(gold: str, guess: str) -> bool:
    """Whether two equations differ by a factor that is a number other than 0."""
    return factor(*(f"{left}-({right})" for left, right in map(_sides, (gold, guess)))) is not None


def _multiples(gold: str, guess: str) -> bool:
    """Whether ``2x > 6`` says the same as ``x > 3``: one relation is a multiple of the other."""
    sides = [_split(text, _RELATION.pattern) for text in (gold, guess)]
    if [len(pair) for pair in sides] != [2, 2]:
        return False
    (a, b), (c, d) = sides
    same = _RELATION.findall(gold) == _RELATION.findall(guess)
    strict = [_RELATION.findall(text)[0] in "<>" for text in (gold, guess)]
    return strict[0] == strict[1] and (factor(f"{a}-({b})", f"{c}-({d})" if same else f"{d}-({c})") or 0) > 0


def _relations_equal(gold: str, guess: str) -> bool:
    """Inequalities with one another, or with the interval that they describe."""
    if _RELATION.search(gold) and _RELATION.search(guess) and r"\in" not in gold + guess:
        gold_set, guess_set = _interval(gold), _interval(guess)
        if gold_set != gold and guess_set != guess:
            return _unknown(gold) == _unknown(guess) and equal(gold_set, guess_set)
        return formulas_equal(gold, guess) or _multiples(gold, guess)
    gold_set, guess_set = _interval(gold), _interval(guess)
    changed = gold_set != gold or guess_set != guess
    return equal(gold_set, guess_set) if changed else False


def _unknown(relation: str) -> str | None:
    return next((side for side in _split(relation, _RELATION.pattern) if _NAME.fullmatch(side)), None)


def _interval(text: str) -> str:
    """``1 < x \\leq 2`` as ``(1,2]``, ``x > 3`` as ``(3,\\infty)``, ``x \\in A`` as ``A``; anything else as it is."""
    sides, relations = _split(text, _RELATION.pattern), _RELATION.findall(text)
    if relations[:1] == [r"\in"] and len(relations) == 1 and len(sides) == 2:
        return sides[1]
    if relations[:1] == [r"\neq"] and len(sides) == 2 and len(relations) == 1 and _NAME.fullmatch(sides[0]):
        return rf"(-\infty,{sides[1]})\cup ({sides[1]},\infty)"
    below, above = ("<", r"\leq"), (">", r"\geq")
    if len(sides) != len(relations) + 1 or len(sides) not in (2, 3):
        return text
    if all(relation in above for relation in relations):
        sides, relations = sides[::-1], [below[above.index(relation)] for relation in relations[::-1]]
    if not all(relation in below for relation in relations):
        return text
    if len(sides) == 3 and _NAME.fullmatch(sides[1]):
        return f"{'[('[relations[0] == '<']}{sides[0]},{sides[2]}{'])'[relations[1] == '<']}"
    if len(sides) == 2 and _NAME.fullmatch(sides[0]) and not _NAME.fullmatch(sides[1]):
        return rf"(-\infty,{sides[1]}{'])'[relations[0] == '<']}"
    if len(sides) == 2 and _NAME.fullmatch(sides[1]) and not _NAME.fullmatch(sides[0]):
        return rf"{'[('[relations[0] == '<']}{sides[0]},\infty)"
    return text


def _set(text: str) -> str:
    """``x < 2`` as an interval, ``x = 1`` as ``\\{1\\}``."""
    name, value = _assigned(text)
    return rf"\{{{value}\}}" if name else _interval(text)


def _quantities_equal(gold: str, gold_unit: Unit | None, guess: str, guess_unit: Unit | None) -> bool:
    if gold_unit and guess_unit:
        if gold_unit == guess_unit:
            return equal(gold, guess)
        if gold_unit.pure or guess_unit.pure or gold_unit.powers != guess_unit.powers:
            return False
        ratio = guess_unit.factor / gold_unit.factor
        return equal(gold, rf"({guess})\cdot\frac{{{ratio.numerator}}}{{{ratio.denominator}}}")
    if equal(gold, guess):
        return True  # the unit is left out on one side
    pure = (gold_unit or guess_unit).pure
    if pure is None:
        return False
    return equal(rf"({gold})\cdot{pure}", guess) if gold_unit else equal(gold, rf"({guess})\cdot{pure}")


def _is_text(text: str) -> bool:
    """Whether an answer is words: at least two letters in \\text{}, or four in a row that are no function's name."""
    return bool(re.search(TEXT + r"[^{}]*[A-Za-z]{2}", text) or re.search(r"[A-Za-z]{4,}", _FUNCTIONS.sub(" ", text)))


def _as_text(text: str) -> list[str]:
    words = re.findall(r"\w+", re.sub(r"\\text|\\[,;: ]", " ", text).casefold())
    return [word for word in words if word not in ("a", "an", "the")]


def _numerals_equal(gold: str, guess: str) -> bool:
    """``101_2``: the same digits, and the same base unless it is left out."""
    digits, bases = [], set()
    for text in (gold, guess):
        match = _BASED.fullmatch(text)
        digits.append(match[1] if match else text)
        bases |= {_BASES.get(match[2] or match[3], match[2] or match[3])} if match else set()
    return digits[0] == digits[1] and len(bases) == 1


def _ratio(text: str) -> str:
    """``3:4`` as a fraction, ``2:3:5`` as the tuple of its quotients; anything else as it is."""
    first, *others = _split(text, ":") or [text]
    quotients = [rf"\frac{{{first}}}{{{term}}}" for term in others]
    return f"({','.join(quotients)})" if len(quotients) > 1 else "".join(quotients) or text
