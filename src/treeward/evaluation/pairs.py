"""What scored samples yield as preferences: spread, gap, length, and the prompts that say nothing.

The unit is the prompt. `score` and `ended` are the policy's own, over all samples; the rest looks at those that are
distinct. `sd` is the standard deviation of scores within a prompt, so that a measured gap can be held
against the one that normal scores would give (`data.selection.expected_gap`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from treeward.data.selection import Picks, expected_gap
from treeward.stats import intervals as statistics
from treeward.stats.intervals import Floats

FEW = 2
"""Distinct samples below which a prompt has nothing to compare."""


@dataclass
class Yield:
    """Figures gathered prompt by prompt, and the report that they make.

    A prompt is silent where no two of its distinct samples differ in score, and passed over where they do and yet no
    pair of the selection lies `min_gap` apart.
    """

    samples: int
    dropped: Counter[str] = field(default_factory=Counter)
    ended: list[float] = field(default_factory=list)
    means: list[float] = field(default_factory=list)
    spreads: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    longer: list[float] = field(default_factory=list)
    owners: list[str] = field(default_factory=list)
    prompts: int = 0
    silent: int = 0
    passed_over: int = 0
    echoes: int = 0

    def see(self, scores: Sequence[float], ended: Sequence[bool]) -> None:
        """All samples of one prompt."""
        self.means.append(float(np.mean(scores)))
        self.ended.append(float(np.mean(ended)))

    def add(self, group: str, scores: Sequence[float], lengths: Sequence[int], picks: Picks) -> None:
        """One prompt's distinct samples and what was picked of them."""
        self.prompts += 1
        differ = len(scores) >= FEW and max(scores) > min(scores)
        self.silent += not differ
        self.passed_over += differ and not picks
        if len(scores) >= FEW:
            self.spreads.append(float(np.std(scores, ddof=1)))
        for pick in picks:
            self.gaps.append(scores[pick[0]] - scores[pick[-1]])
            self.longer.append(float(lengths[pick[0]] - lengths[pick[-1]]))
            self.owners.append(group)

    def report(self) -> dict[str, Any]:
        """Every figure with its interval and n; None where there is nothing to measure."""
        gaps, spreads = np.array(self.gaps), np.array(self.spreads)
        within = float(np.sqrt((spreads**2).mean())) if len(spreads) else 0.0
        return {
            "prompts": self.prompts,
            "picks": len(gaps),
            "dropped": dict(self.dropped),
            "no_signal": self._share(self.silent),
            "passed_over": self._share(self.passed_over),
            "ended": asdict(statistics.share(self.ended, range(len(self.ended)))) if self.ended else None,
            "echoes": self.echoes,
            "score": _mean(np.array(self.means), range(len(self.means))),
            "sd_within": within,
            "sd_between": float(np.std(self.means, ddof=1)) if len(self.means) >= FEW else None,
            "gap": _mean(gaps, self.owners),
            "gap_quantiles": [float(q) for q in np.quantile(gaps, (0, 0.25, 0.5, 0.75, 1))] if len(gaps) else None,
            "gap_in_sd": float(gaps.mean()) / within if len(gaps) and within else None,
            "expected_gap_in_sd": expected_gap(self.samples),
            "length_difference": _mean(np.array(self.longer), self.owners),
        }

    def _share(self, count: int) -> dict[str, Any] | None:
        return asdict(statistics.wilson(count, self.prompts)) if self.prompts else None


def _mean(values: Floats, groups: Sequence[Any]) -> dict[str, Any] | None:
    return asdict(statistics.clustered_mean(values, list(groups))) if len(values) else None
