"""One spelling for the many ways in which an answer is written; strings only, nothing is computed."""

import re
from fractions import Fraction

from brite_lib.verify.extract import boxed, closing_brace

TEXT = r"\\text\{"  # after normalisation every font command with words in it is \text
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-", strict=True))
_UNICODE = {
    "−": "-",
    "–": "-",
    "≤": r"\leq ",
    "≥": r"\geq ",
    "≠": r"\neq ",
    "×": r"\times ",
    "÷": "/",
    "⁄": "/",
    "·": r"\cdot ",
    "⋅": r"\cdot ",
    "π": r"\pi ",
    "∞": r"\infty ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "±": r"\pm ",
    "°": r"^\circ ",
    "½": r"\frac{1}{2}",
    "¼": r"\frac{1}{4}",
    "¾": r"\frac{3}{4}",
    "⅓": r"\frac{1}{3}",
    "⅔": r"\frac{2}{3}",
    "≈": r"\approx ",
    "θ": r"\theta ",
    "α": r"\alpha ",
    "β": r"\beta ",
    "ℝ": r"\mathbb{R}",
    "\u00a0": " ",
    "\u2009": " ",
    "\u202f": " ",
    "“": '"',
    "”": '"',
    "’": "'",
}
_CHARACTERS = str.maketrans(_UNICODE | {chr(0xFF10 + digit): str(digit) for digit in range(10)})
_SPELLINGS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"([√∛])\s?(?:\(([^()]*)\)|(\w+))", lambda match: rf"\sqrt{'[3]' if match[1] == '∛' else ''}{{{match[2] or match[3]}}}"),
        ("[" + "".join(_SUPERSCRIPTS) + "]+", lambda match: "^{" + "".join(map(_SUPERSCRIPTS.get, match[0])) + "}"),
        (r"(?<!\\)\\[()\[\]]|\\(?:displaystyle|textstyle|limits|nolimits|therefore)(?![a-zA-Z])", " "),
        (r"\\\\\s*\[-?[\d.]+\s?[a-z]{2}\]|\\cr(?![a-zA-Z])", r"\\\\"),  # the end of a matrix row
        (r"\\big(cup|cap)(?![a-zA-Z])", r"\\\1"),
        (r"\\(?:vec|overrightarrow)(?:\s?\{\s?([A-Za-z])\s?\}|\s([A-Za-z])(?![A-Za-z]))", r" \1\2"),
        (r"(?<![\\a-zA-Z])C\s?_\s?\{?(\d+)\}?\s?\^\s?\{?(\d+)\}?", r"\\binom{\1}{\2}"),
        (r"\\operatorname\*?\s?\{\s?([A-Za-z]+)\s?\}", r"\\\1 "),
        (r"\\lg(?![a-zA-Z])", r"\\log_{10}"),
        (r"\\log\s?_\s?(?:e|\{\s?e\s?\})(?![a-zA-Z])", r"\\ln"),
        (r"(?<=\d)\{,\}(?=\d)|(?<=\d),\s?\\!\s*(?=\d)", ","),
        (r"(?<=\d)\\[,;: ](?=\d{3}(?!\d))", ""),  # 1\,234
        (r"\\phantom\{[^{}]*\}|\\!|\\(?:left|right|middle)\.", ""),
        (r"\\(?:left|right|middle|big[lrm]?|Big[lrm]?|bigg[lrm]?|Bigg[lrm]?)(?![a-zA-Z])\s*", ""),
        (r"\\(?:text)?color\{[^{}]*\}", ""),
        (r"\\(?:rm|bf|it|sf|tiny|small|large|Large|huge)(?![a-zA-Z])\s*|\\underline(?=\{)", ""),
        (r"(?<=[)\]}])\s*U\s*(?=[(\[]|\\\{)", r"\\cup "),
        (r"\\sime?q?(?![a-zA-Z])", r"\\approx "),
        (r"\\[dtc](frac|binom)(?![a-zA-Z])", r"\\\1"),
        (r"\{\s?([-+])\s?\}", r"\1"),
        (r"\\(?:mbox|hbox|text(?:bf|it|rm|sf|normal)?|math(?:rm|bf|it|sf)|emph|bold|boldsymbol)\s?\{~?", r"\\text{"),
        (r"\\frac\s?\{\s?\\text\{([^{}]*)\}\s?\}\s?\{\s?\\text\{([^{}]*)\}\s?(\^\s?\{?\d\}?)?\s?\}", r"\\text{\1/\2}\3"),
        (r"\}\s*/\s*\\text\s*\{", "/"),
        (r"\^\s?\{?\s?\\circ\s?\}?\s?(?:\\text\{\s?([CF])\s?\}|([CF])(?![a-zA-Z]))", r"\\text{ degrees \1\2}"),
        (r"^\s*\\text\s*\{\s*(-?\d[^{}]*|[A-Z](?:,[\s\\,]*[A-Z])+)\}$", r"\1"),
        (
            r"^\\text\s*\{\s*([A-Za-z])\s*\}$|\\text\s*\{\s*([\d.:]+|\\\$|(?![mgshLlNJW])[A-Za-z]|\([A-Za-z]\))\s*\}",
            lambda match: match[1] or match[2],
        ),
        (r"\\lbrace(?![a-zA-Z])", r"\\{"),
        (r"\\rbrace(?![a-zA-Z])", r"\\}"),
        (r"\\lbrack(?![a-zA-Z])|\\rbrack(?![a-zA-Z])", lambda match: "[" if "l" in match[0][:2] else "]"),
        (r"\\langle(?![a-zA-Z])", "("),
        (r"\\rangle(?![a-zA-Z])", ")"),
        (r"\\colon(?![a-zA-Z])", ":"),
        (r"\\(?:geqslant|ge)(?![a-zA-Z])|>=", r"\\geq "),
        (r"\\(?:leqslant|le)(?![a-zA-Z])|<=", r"\\leq "),
        (r"\\ne(?![a-zA-Z])|!=|\\not\s?=", r"\\neq "),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\backslash(?![a-zA-Z])", r"\\setminus"),
        (r"\\Bbb(?![a-zA-Z])", r"\\mathbb"),
        (r"\\(?:varnothing|empty)(?![a-zA-Z])|\\\{\s*\\\}", r"\\emptyset "),
        (r"\\degree(?![a-zA-Z])", r"^\\circ "),
        (r"\^\s?\{\s?\\circ\s?\}", r"^\\circ "),
        (r"\{([^{}]*?)\\over(?![a-zA-Z])([^{}]*)\}", r"\\frac{\1}{\2}"),
        (r"\*\*", "^"),
        (r"\^\s?(?:\{\s?((?:\\prime\s?)+)\}|\\prime(?![a-zA-Z]))", lambda match: "'" * max(1, (match[1] or "").count("p"))),
        (r"(?<=\d)\.(?=[/*])", ""),
        (r"(?<![\\a-zA-Z])np\.", ""),
        (r"(?<![\\a-zA-Z])(frac(?=\{)|sqrt(?=[\s({])|pi(?![a-zA-Z]))", r"\\\1"),
        (r"(?<![\\a-zA-Z])((?:arc)?(?:sin|cos|tan)h?|cot|sec|csc|ln|log|exp)(?=\s?[\d({_^\\]|\s[a-z](?![a-z]))", r"\\\1"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\^\s*\(([^()]*)\)", r"^{\1}"),
        (r"(?<![\\a-zA-Z])(?:infinity|inf)(?![a-zA-Z])", r"\\infty "),
        (r"\+\s?\\infty", r"\\infty"),
        (r"(\d)\.?[eE]([-+]?\d{1,4})(?![\d.])", r"\1 \\times 10^{\2}"),
        (r"(?<=\d)\s?x\s?(?=10\s?\^)", r" \\times "),
        (r"10\s?\^\s?([-+]?\d+)", r"10^{\1}"),
    )
)
_COMMAND = re.compile(r"\\(frac|binom|sqrt)(?![a-zA-Z])\s*(?:\[[^\[\]]*\])?\s*|\^\s*(?=\\(?:frac|sqrt|binom))")
_TOKEN = re.compile(r"\s*(\{|\\[a-zA-Z]+|\\?[^{}\s\\])")
_MIXED = re.compile(r"(?<![\d.}^_a-zA-Z)])(\d+)\s*(?:\\frac\{(\d+)\}\{(\d+)\}|\s(\d+)/(\d+)(?![\d^]))")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\overline\s?\{?(\d+)\}?")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_BARE_DOLLAR = re.compile(r"(?:-\s?)?\$\s?[\d.][^$]*")
_NUMERAL = re.compile(r"(-?)(?:(\d*)(?:\.(\d*))?|\\frac\{(-?\d+)\}\{(-?\d+)\}|(\d+)/(\d+))")


def normalise(answer: str) -> str:
    """An answer without what does not change its meaning: formula marks, sizes, fonts, spacing, thousands separators.

    ``\\$\\dfrac12$`` and ``1/2`` stay two writings of one number: this makes spellings equal, not values. Mixed numbers and
    repeating decimals become fractions, as sympy would take the first for a product and does not know the second.
    """
    text = boxed(answer) if re.search(r"\\(?:boxed|fbox|framebox)", answer) else answer
    text = (text or "").strip().strip("*`").strip()
    if _BARE_DOLLAR.fullmatch(text):
        text = text.replace("$", r"\$", 1)
    text = re.sub(r"(?<!\\)\$", " ", text).translate(_CHARACTERS)
    if r"\begin" not in text:
        text = re.sub(r"\\\\(?=[a-zA-Z])", r"\\", text)  # from JSON
        text = re.sub(r"(?:\\\\\s*)+$", "", text)
    for pattern, replacement in _SPELLINGS:
        text = pattern.sub(replacement, text)
    text = balanced(re.sub(r"^\s*=", "", re.sub(r"(?:(?<!\\)[.,;:]|(?<=[a-z]{2})!|\\[,;: ]|\\$|~|\s)+$", "", text.strip())))
    text = _braced(text)
    text = _REPEATING.sub(_repeating, text)
    text = _MIXED.sub(_mixed, text)
    if not re.search(r"[(\[]|\\\{", text):  # in a pair the comma is the pair's
        text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
        if re.fullmatch(r"-?\s?\d{1,3}(?: \d{3})+", text):
            text = text.replace(" ", "")
    text = re.sub(r"\s+", " ", text).strip()
    if re.fullmatch(r"\\mathbb\{R\}|(?:\\text\{)?\s*all real(?:s| numbers)\s*\}?", text):
        return r"(-\infty,\infty)"
    if french := re.fullmatch(r"([\[\]])([^()\[\],;]+)[,;]([^()\[\],;]+)([\[\]])", text):
        return f"{'[('[french[1] == ']']}{french[2]},{french[3]}{'])'[french[4] == '[']}"
    return text


def compact(text: str) -> str:
    """A normalised text without the spaces that no meaning hangs on: only those between two words or two numbers stay."""
    text = re.sub(r"\\(?:[,;:> ]|qquad|quad)|~", "", text)
    return re.sub(r"(?<![a-zA-Z\d]) | (?![a-zA-Z\d])|(?<=\d) (?!\d)|(?<=[a-zA-Z]) (?![a-zA-Z])", "", text)


def numeral(text: str) -> tuple[Fraction, bool] | None:
    """The value of an integer, decimal or fraction, and whether it may be a rounding: a decimal with six places or more."""
    match = _NUMERAL.fullmatch(compact(text))
    if not match or not any(match.groups()[1:]):
        return None
    sign, whole, decimals, top, bottom, numerator, divisor = match.groups()
    if not int(bottom or divisor or 1):
        return None
    size = Fraction(int(top or numerator), int(bottom or divisor)) if bottom or divisor else Fraction(f"{whole or 0}.{decimals or 0}")
    return (-size if sign else size), len(decimals or "") >= 6


def balanced(text: str) -> str:
    """The text with missing closing braces added at its end, and surplus ones and unmatched outer brackets taken off."""
    depth, kept = 0, []
    for part in re.findall(r"\\[\s\S]|[^\\]|\\$", text):
        if part == "}" and depth == 0:
            continue
        depth += {"{": 1, "}": -1}.get(part, 0)
        kept.append(part)
    text = "".join(kept) + "}" * depth
    while text.startswith("(") and text.count("(") + text.count("[") > text.count(")") + text.count("]"):
        text = text[1:]
    return text


def _braced(text: str) -> str:
    """With braces around what TeX takes for the arguments of a fraction, binomial or root: ``\\frac12``, ``\\frac{a}b``, ``\\sqrt x``."""
    for command in reversed(list(_COMMAND.finditer(text))):
        place = command.end()
        for _ in range(_arguments(command)):
            if not (token := _TOKEN.match(text, place)):
                break
            start, end = token.start(1), _end(text, token)
            inner = text[start + 1 : end - 1] if token[1] == "{" else text[start:end]
            before = text[:place].rstrip() + f"{{{inner}}}"
            text, place = before + text[end:], len(before)
    return text


def _arguments(command: re.Match[str]) -> int:
    return 2 if command[1] in ("frac", "binom") else 1


def _end(text: str, token: re.Match[str]) -> int:
    """Where an argument ends that begins with this token: a group, a command with its own arguments, or one character."""
    if token[1] == "{":
        return closing_brace(text, token.start(1), len(text)) + 1
    end = token.end()
    if command := _COMMAND.match(text, token.start(1)):
        end = command.end()
        for _ in range(_arguments(command)):
            end = closing_brace(text, end, len(text)) + 1 if text.startswith("{", end) else end
    return end


def _first(match: re.Match[str], *groups: int) -> str:
    return next(match[group] for group in groups if match[group] is not None)


def _mixed(match: re.Match[str]) -> str:
    whole, top, bottom = int(match[1]), int(_first(match, 2, 4)), int(_first(match, 3, 5))
    return rf"\frac{{{whole * bottom + top}}}{{{bottom}}}" if 0 < top < bottom else match[0]


def _repeating(match: re.Match[str]) -> str:
    whole, fixed, period = match.groups()
    value = Fraction(int((whole or "0") + fixed + period) - int((whole or "0") + fixed), 10 ** len(fixed) * (10 ** len(period) - 1))
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
