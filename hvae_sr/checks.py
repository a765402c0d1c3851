"""The checks of numbers that every room shares; their errors name the argument and the value."""

import math
from numbers import Integral, Real
from typing import Any


def check_count(name: str, value: Any, minimum: int, maximum: float = math.inf, optional: bool = False) -> None:
    """Raises a ValueError unless `value` is a whole number in [minimum, maximum], or None if `optional`."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or not minimum <= int(value) <= maximum:
        allowed = f">= {minimum}" if maximum == math.inf else f"between {minimum} and {maximum}"
        raise ValueError(f"`{name}` must be a whole number {allowed}, got {value!r}")


def checked_number(name: str, value: Any) -> float:
    """`value` as a float; raises a ValueError unless it is a finite number >= 0."""
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # a whole number beyond the largest float
        number = math.inf
    if not 0 <= number < math.inf:
        raise ValueError(f"`{name}` must be a finite number >= 0, got {value!r}")
    return number
