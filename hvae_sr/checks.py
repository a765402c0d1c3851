"""The check of whole numbers that every room shares; its error names the argument and the value."""

import math
from numbers import Integral
from typing import Any


def check_count(name: str, value: Any, minimum: int, maximum: float = math.inf, optional: bool = False) -> None:
    """Raises a ValueError unless `value` is a whole number in [minimum, maximum], or None if `optional`."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, Integral) or not minimum <= int(value) <= maximum:
        allowed = f">= {minimum}" if maximum == math.inf else f"between {minimum} and {maximum}"
        raise ValueError(f"`{name}` must be a whole number {allowed}, got {value!r}")
