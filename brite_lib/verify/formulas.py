"""Formulas, compared by math-verify and, where there are symbols in them, by their values.

Everything here may take for ever on hostile input; :mod:`brite_lib.verify.pool` runs it in processes that can be killed.
"""

import cmath
import random
import re
from collections.abc import Iterator

ROUNDING = 1e-6  # two decimals, one of which has six places or more, may differ by this (and by this times the gold answer)
# dM/dt: to sympy the derivative of one symbol by another is 0
_DERIVATIVE = re.compile(
    r"\\frac\s*\{\s*d\s*(?:\^\s?\{?\d\}?)?\s*\\?[A-Za-z]+(?:_\{?\w+\}?)?\s*\}"
    r"\s*\{\s*d\s*\\?[a-zA-Z]+\s*(?:\^\s?\{?\d\}?)?\s*\}"
)
# 2(3), (2)(3), 2\binom{5}{2}: the parser takes two numbers side by side for a mixed number
_FACTOR = re.compile(r"((?<![\w^.])\d++|\)|\\binom\{[^{}]*\}\{[^{}]*\})\s*(?=\(|\\binom|\d)")
_NAME = re.compile(r"(\\[a-zA-Z]+|[a-zA-Z])((?:\s?_\s?(?:\w|\{\s?\w+\s?\}))?)('*)(?=(\s?\()?)")


def formulas_equal(gold: str, guess: str) -> bool:
    """By math-verify, gold first; what it cannot read equals nothing but its own text."""
    import sympy
    from math_verify import verify

    right, value = _parse(gold), _parse(guess)
    if right is None or value is None:
        return False
    if isinstance(right, sympy.Symbol) and isinstance(value, sympy.Symbol):
        return right == value  # math-verify would take \Omega for \omega
    if (verdict := _agree(right, value)) is not None:
        return verdict
    return verify(right, value, timeout_seconds=None, raise_on_error=True) and not _far(right, value)


def factor(gold: str, guess: str) -> float | None:
    """The number by which the second expression is to be multiplied to give the first; None if there is none."""
    right, value = _parse(gold), _parse(guess)
    if right is None or value is None:
        return None
    factors = [a / b for a, b in _values(right, value) if b]
    same = len(factors) > 1 and all(abs(other - factors[0]) <= 1e-9 * abs(factors[0]) for other in factors)
    return factors[0].real if same and factors[0].imag == 0 != factors[0].real else None


def _parse(text: str) -> object | None:
    """A sympy object by math-verify's parser; None for what it cannot read.

    The parser is called without math-verify's search for a formula in a text, which would take the variable m for metres,
    and told to keep R and r apart. i becomes the imaginary unit here, decimals the numbers that they write.
    """
    import sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig, latex2sympy

    if re.search(r"(?<![_\d])\d+\s+\d", text):
        return None  # "1 2" would be their sum
    text = re.sub(r"(\d+(?:\.\d+)?)\s?\^\\circ", r"(\\frac{\1\\pi}{180})", text)
    text = _DERIVATIVE.sub(lambda match: "D_{" + re.sub(r"[^A-Za-z0-9]", "", match[0][5:]) + "}", text)
    text = _FACTOR.sub(r"\1\\cdot ", text)
    text = _NAME.sub(_symbol, text)
    config = NormalizationConfig(basic_latex=True, units=False, malformed_operators=False, nits=True, boxed="none")
    try:
        parsed = latex2sympy(
            text,
            is_real=True,
            normalization_config=config,
            conversion_config=ConversionConfig(lowercase_symbols=False),
        )
    except MemoryError:
        raise
    except Exception:  # its errors have no common class
        return None
    symbols = getattr(parsed, "free_symbols", ())
    exact = {symbol: sympy.I for symbol in symbols if symbol.name in ("i", "\\imath")}
    if isinstance(parsed, sympy.Basic) and not parsed.is_Float:  # a decimal alone may be rounded
        exact |= {decimal: sympy.Rational(str(decimal)) for decimal in parsed.atoms(sympy.Float)}
    return parsed.xreplace(exact) if exact else parsed


def _symbol(match: re.Match[str]) -> str:
    """A name under which the parser keeps what it would misread: E_1 (Euler's number), I (i), \\gamma (Euler's too), y' (y)."""
    name, index, primes, call = match.groups()
    misread = name in ("I", r"\gamma") or (name == r"\Gamma" and not call) or (name in "eE" and index) or primes
    return rf"\Xi_{{{re.sub(r'[^A-Za-z0-9]', '', name + index)}{'p' * len(primes)}}}" if misread else match[0]


def _far(right: object, value: object) -> bool:
    """Whether two numbers differ by more than rounding: math-verify rounds to six decimals, which makes 1e-9 equal 2e-9."""
    if not (getattr(right, "is_number", False) and getattr(value, "is_number", False)):
        return False
    a, b = right.evalf(20), value.evalf(20)  # sympy's numbers: 3^2023 is no float
    size = abs(a)
    return bool(abs(a - b) > ROUNDING * min(1, size) + size * 1e-12)


def _agree(right: object, value: object) -> bool | None:
    """Whether two expressions in symbols have the same values at random positive points; None where that cannot be told.

    Faster than simplifying and stronger: it knows every identity, and takes symbols for positive, as lengths and masses are.
    """
    import sympy

    if not all(isinstance(side, sympy.Expr) for side in (right, value)) or not right.free_symbols | value.free_symbols:
        return None
    values = list(_values(right, value))
    if len(values) < 2:
        return None
    if all(abs(a - b) <= 1e-9 * abs(a) for a, b in values):
        return True
    several = any(a.imag or b.imag for a, b in values) and any(
        power.free_symbols and power.exp.is_Rational and not power.exp.is_integer
        for side in (right, value)
        for power in side.atoms(sympy.Pow)
    )
    return None if several or _unknown_functions(right) != _unknown_functions(value) else False  # roots have several branches


def _values(right: object, value: object) -> Iterator[tuple[complex, complex]]:
    """The values of two expressions at random points with positive symbols, where they have any but 0.

    A function that the formula does not define, v(t), is one more symbol.
    """
    import sympy

    if not all(isinstance(side, sympy.Expr) for side in (right, value)):
        return
    unknown = {function: sympy.Symbol(str(function)) for function in _unknown_functions(right) | _unknown_functions(value)}
    right, value = right.xreplace(unknown), value.xreplace(unknown)
    rng = random.Random(0)
    symbols = sorted(right.free_symbols | value.free_symbols, key=str)
    for low, width in ((0, 1), (1, 1), (2, 4), (3, 9)):
        point = {symbol: low + width * sympy.Rational(rng.randint(1, 999), 1000) for symbol in symbols}
        try:
            a, b = (complex(side.subs(point).evalf(25)) for side in (right, value))
        except (TypeError, ValueError, OverflowError, ZeroDivisionError):  # something in it has no value
            continue
        if max(abs(a), abs(b)) >= 1e-15 and all(map(cmath.isfinite, (a, b))):
            yield a, b


def _unknown_functions(expression: object) -> set[object]:
    from sympy.core.function import AppliedUndef

    return expression.atoms(AppliedUndef)
