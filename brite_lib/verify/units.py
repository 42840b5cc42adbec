"""Units of measure behind (or before) a number: percent, degrees, money, lengths, times …"""

import re
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Unit:
    """Powers of the base quantities, e.g. (("length", 2),), and the size in base units.

    ``pure``: a mark whose value is a number, % = 1/100 and ° = π/180 (``factor`` is LaTeX).
    """

    powers: tuple[tuple[str, int], ...]
    factor: Fraction
    pure: str | None = None


PERCENT = Unit((), Fraction(1), r"\frac{1}{100}")
DEGREE = Unit((), Fraction(1), r"\frac{\pi}{180}")
# quantity: size of a unit in the quantity's base unit, and its names (a plural s is understood)
_TABLE: dict[str, tuple[tuple[str, str], ...]] = {
    "length": (
        ("1", "m meter metre"),
        ("1/100", "cm centimeter centimetre"),
        ("1/1000", "mm millimeter millimetre"),
        ("1000", "km kilometer kilometre"),
        ("127/5000", "in inch inches"),
        ("381/1250", "ft foot feet"),
        ("1143/1250", "yd yard"),
        ("201168/125", "mi mile"),
        ("1/1000000000", "nm nanometer"),
        ("1/1000000", "micrometer"),
    ),
    "mass": (
        ("1", "g gram"),
        ("1000", "kg kilogram"),
        ("1/1000", "mg milligram"),
        ("45359237/100000", "lb lbs pound"),
        ("45359237/1600000", "oz ounce"),
        ("1000000", "ton tonne"),
    ),
    "time": (
        ("1", "s sec second"),
        ("60", "min minute"),
        ("3600", "h hr hour"),
        ("86400", "day"),
        ("604800", "week"),
        ("31536000", "yr year"),
        ("1/1000", "ms millisecond"),
    ),
    "volume": (("1", "L l liter litre"), ("1/1000", "mL ml milliliter millilitre"), ("473176473/125000000", "gal gallon")),
    "money": (
        ("1", "dollar usd"),
        ("1/100", "cent"),
    ),
    "euro": (("1", "euro eur"),),
    "pound sterling": (("1", "gbp"),),
    "rupee": (("1", "rupee"),),
    "half of the day": (("1", "am"),),
    "other half": (("1", "pm"),),
    "angle": (("1", "rad radian"),),
    "temperature": (("1", "kelvin"),),  # scales with other zeros are other quantities
    "celsius": (("1", "celsius °c °celsius"),),
    "fahrenheit": (("1", "fahrenheit °f °fahrenheit"),),
    "force": (("1", "N newton"),),
    "energy": (("1", "J joule"), ("1000", "kJ kilojoule")),
    "power": (("1", "W watt"),),
    "frequency": (("1", "Hz hertz"),),
}
_WORDS = {name: (quantity, Fraction(size)) for quantity, rows in _TABLE.items() for size, names in rows for name in names.split()}
_SYMBOLS = {"%": PERCENT, "percent": PERCENT, "percentage": PERCENT, "pct": PERCENT, "degree": DEGREE, "deg": DEGREE}
_COMPOUND = {"mph": "mile/hour", "kmph": "km/hour", "kph": "km/hour", "cc": "cm^3"}
_CURRENCY = {r"\$": "dollar", "$": "dollar", "€": "euro", r"\euro": "euro", "£": "gbp", r"\pounds": "gbp", "₹": "rupee"}
_MARK = re.compile(
    r"((?!.*\\(?:sin|cos|tan|cot|sec|csc)).*?)\s?"
    r"(\\?%|\^\\circ|\\text\{\s*(?:\\?%|percent|percentage|degrees?)\s*\}|(?<=[\d}\s])(?:percent|degrees?))"
)
_BEFORE = re.compile(r"(-?)\s?(\\\$|\$|€|£|₹|\\euro|\\pounds)\s?(?=[\d.\\-])(.*)", re.DOTALL)
_POWER = r"(?:\s?\^\s?(?:\d|\{-?\d\}))?"
_SPACE = r"(?:\s|~|\\[,;: ]|\\q?quad(?![a-zA-Z]))*"
# "… \text{ cm}^2", "… cm^{2}", "12 square centimeters", "5 m", "576\pi\;m^{2}"; a letter glued to a formula is a variable.
_AFTER = re.compile(rf"(.*?){_SPACE}\\text\{{\s*([^{{}}]*?)\s*\}}({_POWER})", re.DOTALL)
_LONG = "|".join(sorted((re.escape(name) for name in _WORDS if len(name) > 1), key=len, reverse=True))
_GLUED = re.compile(rf"(.*?(?:[\d}})]|(?<![a-zA-Z])i)){_SPACE}((?:{_LONG})s?)({_POWER})")
_SPACED = re.compile(rf"(.*?)(?:~|\\[,;: ]|\\q?quad(?![a-zA-Z]))+\s*([a-zA-Z]{{1,3}}(?:/[a-zA-Z]{{1,3}})?)({_POWER})")
_PLAIN = re.compile(rf"(-?[\d.,:/]+|-?\\frac\{{\d+\}}\{{\d+\}}|.*10\^\{{-?\d+\}})\s([A-Za-z][A-Za-z./ ]*?)({_POWER})")
_TIGHT = re.compile(rf"(-?[\d.,/]+)([a-zA-Z])({_POWER})")
_COUNTED = re.compile(r"(?!.*\b(?:sin|cos|tan|cot|sec|csc|log|exp|sqrt|mod)\b)(?:[A-Za-z]{3,}(?:/[A-Za-z]+)?\s?)+")


def split_unit(text: str, tight: bool = False) -> tuple[str, Unit | None]:
    """(value, unit) of a normalised answer; the unit is None if there is none or it is a counted thing (apples).

    ``tight``: one letter right behind a number, ``2h``, is a unit and no variable.
    """
    if mark := _MARK.fullmatch(text):
        return mark[1], DEGREE if re.search("circ|deg", mark[2]) else PERCENT
    if money := _BEFORE.fullmatch(text):
        return money[1] + money[3], _parse(_CURRENCY[money[2]], "")
    for pattern in (_AFTER, _GLUED, _SPACED, _PLAIN, *([_TIGHT] if tight else [])):
        found = pattern.fullmatch(text)
        if found and found[1].strip() and not re.search(r"[=<>]\s*$", found[1]):
            unit = _parse(found[2], found[3])
            if unit or (pattern in (_AFTER, _PLAIN) and _COUNTED.fullmatch(found[2]) and re.match(r"[-\d.\\(]", found[1])):
                return found[1].strip(), unit
    return text, None


def _parse(words: str, power: str) -> Unit | None:
    """The unit that words name: ``square centimeters``, ``miles per hour``, ``km/h``; None if they name no unit of measure."""
    powers: dict[str, int] = {}
    factor, sign, times = Fraction(1), 1, 1
    words = re.sub(r"\bdegrees?\s+(?=(?:[CF]|celsius|fahrenheit)\b)", "°", words.replace("\\", ""), flags=re.IGNORECASE)
    expression = " ".join(_COMPOUND.get(word, word) for word in words.split()) + power.replace(" ", "")  # the power is the last unit's
    for word in re.findall(r"/|[^\s/^]+(?:\^\{?-?\d\}?)?", expression):
        if word in ("/", "per"):
            sign, times = -1, 1
            continue
        if word.lower() in ("square", "sq", "sq.", "cubic", "cu", "cu."):
            times = 2 if word.lower().startswith("sq") else 3
            continue
        name, _, own = word.partition("^")
        times = int(own.strip("{}")) if own else times
        if mark := _SYMBOLS.get(name.lower().removesuffix("s")):
            return mark
        known = _lookup(name)
        if known is None:
            return None
        powers[known[0]] = powers.get(known[0], 0) + sign * times
        factor *= known[1] ** (sign * times)
        times = 1
    return Unit(tuple(sorted(powers.items())), factor) if powers else None


def _lookup(name: str) -> tuple[str, Fraction] | None:
    name = name if name in _WORDS else name.lower()
    plain = name.replace(".", "")  # in., a.m.
    return _WORDS.get(plain) or (_WORDS.get(plain.removesuffix("s")) if len(plain) > 2 else None)
