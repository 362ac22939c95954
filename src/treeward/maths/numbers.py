"""How a measured number is written, for the terminal and the pages alike: no more digits than its interval justifies.

Standard library only. `facts` is a value with its interval as a receipt holds it: `value`, `low` and `high` (None where
n = 1 gives no interval), and `reliable`, which is false where no method covers at this n.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

Facts = Mapping[str, Any]

SMALLEST_P = 1e-4
"""No p value is printed below this one: the tails of a test are not known better than that."""
UNRELIABLE = "interval unreliable"


def value(facts: Facts, sign: bool = False) -> str:
    """The value alone, to two significant digits of half its interval's width; `sign` writes a plus where it rose."""
    return _written(facts["value"], _decimals(facts), sign)


def bounds(facts: Facts, sign: bool = False) -> str:
    """The interval alone, "[0.641, 0.687]", with the value's decimals; a dash for a bound that is not known."""
    decimals = _decimals(facts)
    low, high = (_written(facts[bound], decimals, sign) for bound in ("low", "high"))
    return f"[{low}, {high}]"


def interval(facts: Facts, sign: bool = False) -> str:
    """The value with its interval, and a note where that is unreliable: "0.664 [0.641, 0.687]"."""
    note = "" if reliable(facts) else f" ({UNRELIABLE})"
    return f"{value(facts, sign)} {bounds(facts, sign)}{note}"


def reliable(facts: Facts) -> bool:
    """Whether the interval may be relied on; so it is unless the receipt says otherwise."""
    return facts.get("reliable") is not False


def p_value(p: float | None, n: int) -> str:
    """ "p=0.023", or a bound where p is smaller than n independent units can show: with n signs to flip the smallest
    two-sided p is 2^(1 - n).
    """
    if p is None or math.isnan(p):
        return "p unknown"
    floor = max(SMALLEST_P, 2.0 ** (1 - n))
    return f"p<{_plain(floor, math.ceil)}" if p < floor else f"p={_plain(p, round)}"


def number(found: float | None) -> str:
    """A number that stands without an interval: three significant digits, whole ones above a thousand."""
    if found is None:
        return "–"
    if isinstance(found, int) or abs(found) >= 1000:
        return f"{found:,.0f}"
    return f"{found:z.3g}"


def _plain(p: float, whole: Callable[[float], int]) -> str:
    """A number from SMALLEST_P to 1 with two significant digits and no exponent."""
    decimals = 1 - math.floor(math.log10(p))
    return f"{whole(p * 10**decimals) / 10**decimals:.{decimals}f}".rstrip("0").rstrip(".")


def _decimals(facts: Facts) -> int | None:
    """Decimals that show two significant digits of half the interval's width; None where there is no width to go by."""
    low, high = facts["low"], facts["high"]
    if low is None or high is None or not math.isfinite(high - low):
        return None
    half = (high - low) / 2
    scale = max(abs(low), abs(high))
    return None if half <= 1e-9 * scale else max(0, 1 - math.floor(math.log10(half)))


def _written(found: float | None, decimals: int | None, sign: bool) -> str:
    if found is None or math.isnan(found):
        return "–"
    plus = "+" if sign and found else ""
    if decimals is None:
        return f"{found:{plus}z.4g}"
    if decimals > 6:
        digits = max(0, decimals + math.floor(math.log10(abs(found)))) if found else 0
        return f"{found:{plus}z.{digits}e}" if found else "0"
    return f"{found:{plus}z,.{decimals}f}"
