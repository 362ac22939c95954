"""One word for a run: broken, worse, no detectable change, improved; the strongest that applies wins.

The training loss never enters. `improved` needs the interval of the main metric's change clear of zero, every check
passed and every guard held. A failed check is `broken`; a guard that did not hold is `worse`: the run did what was
asked, and what it learned is not good.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from treeward.checks.check import Check
from treeward.stats import formatting as numbers
from treeward.stats.intervals import Difference
from treeward.stats.tables import Comparison

Word = Literal["improved", "no detectable change", "worse", "broken"]
GUARDS = ("F24", "F32")
"""Checks that guard against learning the wrong thing: failed, they make a run worse, not broken."""
BELOW_HALF = 0.01
"""p below which an accuracy that did not fall is `worse` because it is below one half. It is two-sided: together with
the fall's own 2.5 %, a run without effect at one half is called worse in at most 3 %."""
EXIT = {"improved": 0, "no detectable change": 3, "worse": 3, "broken": 4}


@dataclass(frozen=True)
class Verdict:
    """The word, and the reason in one line."""

    word: Word
    reason: str

    def exit_code(self, require: str) -> int:
        """0 where `require` is met; 3 below it; 4 broken."""
        return 0 if require == "any" and self.word != "broken" else EXIT[self.word]


def decide(
    main: Comparison,
    checks: Sequence[Check],
    rule: Comparison | None = None,
    scorer: str | None = None,
    half: Difference | None = None,
) -> Verdict:
    """The verdict from the main metric's comparison, all checks, for reward models the trivial rule to beat, the name
    of the scorer (where no judge stood beside it, the reason says so), and an accuracy's difference to one half.
    """
    failed = [check for check in checks if check.passed is False]
    fallen = [check for check in failed if check.id in GUARDS]
    if len(failed) > len(fallen):
        return Verdict("broken", str(next(check for check in failed if check not in fallen)))
    if fallen:
        return Verdict("worse", str(fallen[0]))
    d, name = main.difference, main.metric.name
    before, after = numbers.value(asdict(main.before)), numbers.value(asdict(main.after))
    change = f"{name} {before} -> {after}, change {numbers.interval(asdict(d), sign=True)}"
    alone = name == "score" and scorer is not None and not any(check.id == "F32" for check in checks)
    change += f", n={main.after.n}{f', by {scorer} alone' if alone else ''}"
    if half is not None and half.value < 0 and half.p < BELOW_HALF and main.outcome != "worse":
        return Verdict("worse", f"{change}: below one half (p={half.p:.2g})")
    if main.outcome == "improved" and rule is not None and rule.outcome != "improved":
        said = f"{rule.before.value:.3g} against {rule.after.value:.3g}, p={rule.difference.p:.2g}"
        return Verdict("no detectable change", f"{change}, but not above the length rule ({said}; F16)")
    if main.outcome == "no detectable change":
        if math.isnan(d.minimum_detectable):
            return Verdict(main.outcome, f"{change}; all values are alike, so what other prompts would show is unknown")
        return Verdict(main.outcome, f"{change}; this n shows differences from {d.minimum_detectable:.3g}")
    return Verdict(main.outcome, change)
