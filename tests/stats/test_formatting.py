"""Printed digits: those that the interval justifies, and no p below the smallest possible p of n groups."""

from typing import Any

import pytest

from treeward.stats import formatting


def facts(value: float, low: float | None, high: float | None, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, **more}


@pytest.mark.parametrize(
    ("measured", "text"),
    [
        (facts(0.6881067, 0.6441497, 0.7320638), "0.688 [0.644, 0.732]"),
        (facts(4.5094860, 4.5049697, 4.5140023), "4.5095 [4.5050, 4.5140]"),
        (facts(0.5, 0.0945, 0.9055), "0.50 [0.09, 0.91]"),
        (facts(40.0088, 38.5242, 41.4934), "40.0 [38.5, 41.5]"),
        (facts(12345.6, 11000.2, 13690.9), "12,346 [11,000, 13,691]"),
        (facts(0.5, 0.5, 0.5), "0.5 [0.5, 0.5]"),
        (facts(0.6931471805599453, 0.6931471805599453, 0.6931471805599454), "0.6931 [0.6931, 0.6931]"),
        (facts(0.25, None, None), "0.25 [–, –]"),
        (facts(-0.0001, -0.02, 0.02), "0.000 [-0.020, 0.020]"),
        (facts(2.34e-8, 2.1e-8, 2.6e-8), "2.34e-08 [2.10e-08, 2.60e-08]"),
        (facts(0.3, 0.1, 0.6, reliable=False), "0.30 [0.10, 0.60] (interval unreliable)"),
        (facts(0.3, 0.1, 0.6, reliable=True), "0.30 [0.10, 0.60]"),
    ],
)
def test_two_significant_digits_of_half_the_width(measured: dict[str, Any], text: str) -> None:
    assert formatting.interval(measured) == text


def test_a_change_carries_its_sign() -> None:
    assert formatting.interval(facts(0.1643, 0.1141, 0.2117), sign=True) == "+0.164 [+0.114, +0.212]"
    assert formatting.value(facts(0.0, 0.0, 0.0), sign=True) == "0"


@pytest.mark.parametrize(
    ("p", "n", "text"),
    [
        (0.0234, 64, "p=0.023"),
        (0.5, 64, "p=0.5"),
        (1.0, 64, "p=1"),
        (1.2e-8, 64, "p<0.0001"),
        (0.0, 567, "p<0.0001"),
        (0.004, 5, "p<0.063"),
        (0.004, 10, "p=0.004"),
        (0.001, 10, "p<0.002"),
        (0.3, 5, "p=0.3"),
        (0.03, 2, "p<0.5"),
        (None, 1, "p unknown"),
    ],
)
def test_p_is_not_printed_below_its_smallest_possible_value(p: float | None, n: int, text: str) -> None:
    assert formatting.p_value(p, n) == text


def test_numbers_without_an_interval() -> None:
    assert [formatting.number(x) for x in (None, 0.785495, 12, 1234567, 4566.25, 1e-7)] == [
        "–",
        "0.785",
        "12",
        "1,234,567",
        "4,566",
        "1e-07",
    ]
