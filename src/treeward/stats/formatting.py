"""How figures are written and what they mean.

How a measured number is written, for the terminal and the pages alike: no more digits than its interval justifies.

Standard library only. `facts` is a value with its interval as a receipt holds it: `value`, `low` and `high` (None where
n = 1 gives no interval), and `reliable`, which is false where no method covers at this n.


---
What each figure is called, and what it means in one line, for the pages and the terminal.
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


JUDGE = "judge:"

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
    "entropy": ("next-token entropy", "how undecided the model is about each next token of its samples, in nats"),
    "start_nll": ("NLL under the start", "mean negative log-probability that the start model gives to the samples, in "
                  "nats a token; a rise means text that the start would not write"),
    "self_bleu": ("self-BLEU", "overlap (BLEU-4) of a sample with the other samples of its prompt: 0 nothing in "
                  "common, 1 all alike"),
    "repetition": ("repetition", "share of a sample's 4-token sequences that it has already used"),
    "length": ("length", "tokens of a sample, its end token included"),
    "ended": ("ended", "share of samples that end by themselves, before the length limit"),
    "token_entropy": ("pooled entropy", "entropy of the token frequencies of all samples together, in nats: how varied "
                      "the words are"),
    "distinct_1": ("distinct-1", "share of the samples' tokens that are different from each other"),
    "distinct_2": ("distinct-2", "share of the samples' token pairs that are different from each other"),
    "distinct_3": ("distinct-3", "share of the samples' token triples that are different from each other"),
    "perplexity": ("perplexity", "of the samples under the start model: how surprising the start finds them"),
    "ece": ("calibration error", "mean distance between the stated probability and the share that comes true, ten bins "
            "of equal size"),
}  # fmt: skip
"""Label and meaning by the name that receipts use."""


def label(name: str) -> str:
    """A figure's name in words; a judge's is its own."""
    return f"judge {name.removeprefix(JUDGE)}" if name.startswith(JUDGE) else FIGURES.get(name, (name, ""))[0]


def meaning(name: str) -> str:
    """What a figure means, in one line; empty for a name that is not known."""
    if name.startswith(JUDGE):
        return "mean score of the same samples by a judge that training never used"
    return FIGURES.get(name, ("", ""))[1]
