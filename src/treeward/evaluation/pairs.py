"""Statistics of pairs that were made from scored samples: spread, gap, length, and prompts that give no pair.

The unit is the prompt. `score` and `ended` are over all samples of the policy; the rest is over distinct samples. `sd`
is the standard deviation of scores within a prompt, to compare a measured gap with that of normally distributed scores
(`data.selection.expected_gap`).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from treeward.data.selection import Picks, expected_gap
from treeward.stats import intervals
from treeward.stats.intervals import Floats

FEWEST = 2
"""Distinct samples that a comparison needs."""


@dataclass
class PairStatistics:
    """Collected prompt by prompt.

    `no_signal` counts prompts whose distinct samples all have the same score; `below_min_gap` those whose scores
    differ, but no selected pair by as much as `min_gap`.
    """

    samples: int
    dropped: Counter[str] = field(default_factory=Counter)
    ended: list[float] = field(default_factory=list)
    means: list[float] = field(default_factory=list)
    spreads: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    length_differences: list[float] = field(default_factory=list)
    pair_groups: list[str] = field(default_factory=list)
    prompts: int = 0
    no_signal: int = 0
    below_min_gap: int = 0
    echoes: int = 0

    def add_samples(self, scores: Sequence[float], ended: Sequence[bool]) -> None:
        """All samples of one prompt."""
        self.means.append(float(np.mean(scores)))
        self.ended.append(float(np.mean(ended)))

    def add_picks(self, group: str, scores: Sequence[float], lengths: Sequence[int], picks: Picks) -> None:
        """One prompt's distinct samples, and which pairs were picked of them."""
        self.prompts += 1
        differ = len(scores) >= FEWEST and max(scores) > min(scores)
        self.no_signal += not differ
        self.below_min_gap += differ and not picks
        if len(scores) >= FEWEST:
            self.spreads.append(float(np.std(scores, ddof=1)))
        for pick in picks:
            self.gaps.append(scores[pick[0]] - scores[pick[-1]])
            self.length_differences.append(float(lengths[pick[0]] - lengths[pick[-1]]))
            self.pair_groups.append(group)

    def report(self) -> dict[str, Any]:
        """Every figure with its interval and n; None if there is nothing to measure."""
        gaps, spreads = np.array(self.gaps), np.array(self.spreads)
        within = float(np.sqrt((spreads**2).mean())) if len(spreads) else 0.0
        return {
            "prompts": self.prompts,
            "picks": len(gaps),
            "dropped": dict(self.dropped),
            "no_signal": self._share(self.no_signal),
            "below_min_gap": self._share(self.below_min_gap),
            "ended": asdict(intervals.share(self.ended, range(len(self.ended)))) if self.ended else None,
            "echoes": self.echoes,
            "score": _mean(np.array(self.means), range(len(self.means))),
            "sd_within": within,
            "sd_between": float(np.std(self.means, ddof=1)) if len(self.means) >= FEWEST else None,
            "gap": _mean(gaps, self.pair_groups),
            "gap_quantiles": [float(q) for q in np.quantile(gaps, (0, 0.25, 0.5, 0.75, 1))] if len(gaps) else None,
            "gap_in_sd": float(gaps.mean()) / within if len(gaps) and within else None,
            "expected_gap_in_sd": expected_gap(self.samples),
            "length_difference": _mean(np.array(self.length_differences), self.pair_groups),
        }

    def _share(self, count: int) -> dict[str, Any] | None:
        return asdict(intervals.wilson(count, self.prompts)) if self.prompts else None


def _mean(values: Floats, groups: Sequence[Any]) -> dict[str, Any] | None:
    return asdict(intervals.clustered_mean(values, list(groups))) if len(values) else None
