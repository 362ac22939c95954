"""How measured values are printed, and what each is called: for the terminal and the report alike.

A number is printed with the digits that its interval justifies: two significant digits of half the interval's width.

Standard library only. `facts` is a value with its interval as in a receipt: `value`, `low`, `high` (None if there is no
interval) and `reliable` (false if the interval may not cover).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

# --------------------------------------------------------------------------- numbers

Facts: TypeAlias = Mapping[str, Any]
"""A value with its interval: `value`, `low`, `high` and, optionally, `reliable`."""

SMALLEST_P = 1e-4
"""Smaller p values are printed as a bound, because the tails of a test are not accurate below this."""
UNRELIABLE = "interval unreliable"
"""The note after an interval that is not reliable."""


def value(facts: Facts, sign: bool = False) -> str:
    """The value alone, "0.664". With `sign`, positive values have a plus."""
    return _format(facts["value"], _decimals(facts), sign)


def bounds(facts: Facts, sign: bool = False) -> str:
    """The interval alone, "[0.641, 0.687]", with as many decimals as the value; a dash for an unknown bound."""
    decimals = _decimals(facts)
    low, high = (_format(facts[bound], decimals, sign) for bound in ("low", "high"))
    return f"[{low}, {high}]"


def interval(facts: Facts, sign: bool = False) -> str:
    """The value with its interval, "0.664 [0.641, 0.687]", and a note if the interval is not reliable."""
    note = "" if reliable(facts) else f" ({UNRELIABLE})"
    return f"{value(facts, sign)} {bounds(facts, sign)}{note}"


def reliable(facts: Facts) -> bool:
    """Whether the interval is reliable; true unless `facts` has `reliable: false`."""
    return facts.get("reliable") is not False


def p_value(p: float | None, n: int) -> str:
    """A p value, "p=0.023", or a bound, "p<0.0001", below `SMALLEST_P` or below 2^(1 - n).

    2^(1 - n) is the smallest two-sided p of a sign-flip test on n groups.
    """
    if p is None or math.isnan(p):
        return "p unknown"
    floor = max(SMALLEST_P, 2.0 ** (1 - n))
    return f"p<{_two_digits(floor, math.ceil)}" if p < floor else f"p={_two_digits(p, round)}"


def number(value: float | None) -> str:
    """A number without an interval: three significant digits; integers, and numbers from 1000 on, in full."""
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:z.3g}"


def _two_digits(p: float, rounding: Callable[[float], int]) -> str:
    """A number from SMALLEST_P to 1 with two significant digits and no exponent."""
    decimals = 1 - math.floor(math.log10(p))
    return f"{rounding(p * 10**decimals) / 10**decimals:.{decimals}f}".rstrip("0").rstrip(".")


def _decimals(facts: Facts) -> int | None:
    """The decimals that show two significant digits of half the interval's width; None without a width."""
    low, high = facts["low"], facts["high"]
    if low is None or high is None or not math.isfinite(high - low):
        return None
    half = (high - low) / 2
    scale = max(abs(low), abs(high))
    return None if half <= 1e-9 * scale else max(0, 1 - math.floor(math.log10(half)))


def _format(number: float | None, decimals: int | None, sign: bool) -> str:
    """A number with this many decimals, in scientific notation beyond 6; four significant digits if None."""
    if number is None or math.isnan(number):
        return "–"
    plus = "+" if sign and number else ""
    if decimals is None:
        return f"{number:{plus}z.4g}"
    if decimals > 6:
        digits = max(0, decimals + math.floor(math.log10(abs(number)))) if number else 0
        return f"{number:{plus}z.{digits}e}" if number else "0"
    return f"{number:{plus}z,.{decimals}f}"


# --------------------------------------------------------------------------- names and meanings

JUDGE = "judge:"
"""Prefix of the scores of judges (`treeward.stats.tables.JUDGE`; kept apart so that this module needs no numpy)."""

FIGURES: dict[str, tuple[str, str]] = {
    "nll": ("NLL", "mean negative log-probability of held-out text, in nats a token (policy), or of the held-out "
            "choice, in nats a pair (reward model); lower is better"),
    "nll_token": ("NLL a token", "mean negative log-probability of the held-out responses, in nats a token; lower is "
                  "better"),
    "nll_pair": ("NLL a pair", "mean negative log-probability that the model gives to the held-out choices, in nats a "
                 "pair; lower is better, and always saying one half gives 0.69"),
    "accuracy": ("pair accuracy", "share of held-out pairs in which the chosen response scores higher than the "
                 "rejected one; a tie counts one half"),
    "log_ratio_chosen": ("log-ratio, chosen", "log-probability of the chosen response, trained model minus start, in "
                         "nats"),
    "log_ratio_rejected": ("log-ratio, rejected", "log-probability of the rejected response, trained model minus "
                           "start, in nats"),
    "brier": ("Brier score", "mean squared error of the predicted probability that the chosen response wins; lower is "
              "better, and always saying one half gives 0.25"),
    "mae": ("rating error", "mean distance between the predicted score and the rating, in score bins; lower is better"),
    "crps": ("CRPS", "mean distance between the predicted distribution of scores and the rating (continuous ranked "
             "probability score), in score bins; lower is better"),
    "cross_entropy": ("rating cross-entropy", "mean negative log-probability of the rating under the predicted "
                      "distribution of scores, in nats; lower is better"),
    "score": ("score", "mean score of responses sampled from the model, as the scorer gives it"),
    "kl": ("KL to the start", "how far the model has moved from its start: KL divergence a response, in nats"),
    "kl_token": ("KL a token", "the same divergence a token of the response, in nats"),
    "entropy": ("next-token entropy", "mean entropy of the next-token distribution along the samples, in nats"),
    "start_nll": ("NLL under the start", "mean negative log-probability of the samples under the start model, in nats "
                  "a token; higher means text that the start model is less likely to write"),
    "self_bleu": ("self-BLEU", "overlap (BLEU-4) of a sample with the other samples of its prompt: 0 is nothing "
                  "in common, 1 all equal"),
    "repetition": ("repetition", "share of a sample's 4-token sequences that it has already used"),
    "length": ("length", "tokens of a sample, its end token included"),
    "ended": ("ended", "share of samples that end with the end token, before the length limit"),
    "token_entropy": ("pooled entropy", "entropy of the token frequencies of all samples together, in nats: how varied "
                      "the words are"),
    "distinct_1": ("distinct-1", "share of the samples' tokens that are different from each other"),
    "distinct_2": ("distinct-2", "share of the samples' token pairs that are different from each other"),
    "distinct_3": ("distinct-3", "share of the samples' token triples that are different from each other"),
    "perplexity": ("perplexity", "of the samples under the start model: how surprising the start finds them"),
    "ece": ("calibration error", "mean distance between the stated probability and the share that comes true, ten bins "
            "of equal size"),
}  # fmt: skip
"""The label and the meaning of each figure, by its name in receipts."""


def label(name: str) -> str:
    """A figure's name for readers; "judge NAME" for a judge; the name itself if it is unknown."""
    return f"judge {name.removeprefix(JUDGE)}" if name.startswith(JUDGE) else FIGURES.get(name, (name, ""))[0]


def meaning(name: str) -> str:
    """What a figure means, in one line; empty if the name is unknown."""
    if name.startswith(JUDGE):
        return "mean score of the same samples by a judge that training never used"
    return FIGURES.get(name, ("", ""))[1]
