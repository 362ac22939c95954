"""Does what a receipt prints hold? Simulated coverage of intervals, calibration tests, diversity and verdicts.

    python bench/calibration.py [--only REGEX] [--out FILE.jsonl]

Every scenario draws many tables whose truth is given, and hands them to the functions that receipts and pages use. A
finished scenario is one line of the JSON lines file; a second call takes up what is there and runs the rest. Each has a
generator of its own, seeded by its name, so the order and the choice of scenarios change no figure. At the end a
Markdown table a family is printed; the exit code is 1 where a scenario failed.
"""

import argparse
import json
import re
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from treeward.evaluation.tables import Table, compare

Floats = NDArray[np.float64]
Draw = np.random.Generator
Figures = Mapping[str, Any]
"""What a scenario measured; `passed` is True, False, or None where nothing is required."""

SEED = 0
TABLES = 4_000
LEAST = 0.93
"""A cell of 32 examples and more fails if its coverage is below this beyond chance (99 %)."""
SIZES = (16, 32, 64, 200, 1000)


@dataclass(frozen=True)
class Scenario:
    """One line of a table: its family, its name, and what it measures from a generator of its own."""

    family: str
    name: str
    run: Callable[[Draw], Figures]

    def draw(self, seed: int) -> Draw:
        """The scenario's own generator: the same whatever else is run."""
        return np.random.default_rng([seed, zlib.crc32(f"{self.family} {self.name}".encode())])


def upper(successes: int, n: int) -> float:
    """The 99 % upper limit of a rate (Clopper and Pearson 1934), one-sided."""
    return 1.0 if successes == n else float(stats.beta.ppf(0.99, successes + 1, n - successes))


def lower(successes: int, n: int) -> float:
    """The 99 % lower limit of a rate (Clopper and Pearson 1934), one-sided."""
    return 0.0 if successes == 0 else float(stats.beta.ppf(0.01, successes, n - successes + 1))


# --- coverage of intervals ------------------------------------------------------------------------------------------


def coverage(family: str, name: str, n: int, once: Callable[[Draw], tuple[bool, float]], required: bool) -> Scenario:
    """`once` draws a table and says whether the interval holds the truth, and how wide it is."""

    def run(draw: Draw) -> Figures:
        results = [once(draw) for _ in range(TABLES)]
        held = sum(inside for inside, _ in results)
        widths = [width for _, width in results if np.isfinite(width)]
        judged = required and n >= 32
        return {
            "n": n, "tables": TABLES, "coverage": held / TABLES, "upper": upper(held, TABLES),
            "width": float(np.mean(widths)) if widths else None,
            "passed": upper(held, TABLES) >= LEAST if judged else None,
        }  # fmt: skip

    return Scenario(family, f"{name}, n={n}", run)


def single(n: int) -> list[str]:
    """n prompts with one row each."""
    return [str(i) for i in range(n)]


def of_share(p: float, n: int) -> Scenario:
    """A share of single rows, as an accuracy's."""

    def once(draw: Draw) -> tuple[bool, float]:
        found = Table(single(n), {"accuracy": draw.binomial(1, p, n).astype(np.float64)}).interval("accuracy")
        return found.low <= p <= found.high, found.high - found.low

    return coverage("share", f"share {p:g}", n, once, True)


def of_paired_share(gained: float, lost: float, n: int) -> Scenario:
    """Two accuracies on the same pairs: shares `gained` and `lost` of them change sides."""

    def once(draw: Draw) -> tuple[bool, float]:
        change = draw.choice([1.0, -1.0, 0.0], n, p=[gained, lost, 1 - gained - lost])
        before = np.where(change == 0, draw.integers(0, 2, n), change < 0).astype(np.float64)
        tables = [Table(single(n), {"accuracy": side}) for side in (before, before + change)]
        found = compare("accuracy", *tables).difference
        return found.low <= gained - lost <= found.high, found.high - found.low

    return coverage("paired difference of shares", f"gained {gained:g}, lost {lost:g}", n, once, True)


SHARES = [of_share(p, n) for p in (0.02, 0.1, 0.5, 0.785, 0.98) for n in SIZES]
PAIRED = [
    of_paired_share(gained, lost, n)
    for gained, lost in ((0.01, 0.01), (0.02, 0.0), (0.04, 0.02), (0.1, 0.1), (0.25, 0.15))
    for n in SIZES
]

# --- verdicts -------------------------------------------------------------------------------------------------------

VERDICTS: list[Scenario] = []

SCENARIOS: Sequence[Scenario] = [*SHARES, *PAIRED, *VERDICTS]


# --- running and printing -------------------------------------------------------------------------------------------


def finished(path: Path, seed: int) -> dict[tuple[str, str], dict[str, Any]]:
    """The lines of an earlier call with this seed, by family and name."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    return {(row["family"], row["name"]): row for row in rows if row["seed"] == seed}


def run(scenarios: Sequence[Scenario], path: Path, seed: int) -> list[dict[str, Any]]:
    """Every scenario's line, in order; those that are in the file already are not run again."""
    rows = finished(path, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for scenario in scenarios:
            key = (scenario.family, scenario.name)
            if key in rows:
                continue
            begun = time.monotonic()
            figures = dict(scenario.run(scenario.draw(seed)))
            seconds = round(time.monotonic() - begun, 2)
            rows[key] = {"family": key[0], "name": key[1], "seed": seed, **figures, "seconds": seconds}
            file.write(json.dumps(rows[key]) + "\n")
            file.flush()
            print(f"{key[0]}: {key[1]}: {said(figures)} ({seconds:.1f} s)", file=sys.stderr, flush=True)
    return [rows[scenario.family, scenario.name] for scenario in scenarios]


def said(figures: Figures) -> str:
    """A scenario's figures in one line."""
    return ", ".join(f"{name} {shown(value)}" for name, value in figures.items())


def shown(value: object) -> str:
    """A cell: four digits of a number, "–" for what is not measured or not required."""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One table a family."""
    blocks = []
    for family in dict.fromkeys(row["family"] for row in rows):
        of = [row for row in rows if row["family"] == family]
        columns = [name for name in of[0] if name not in ("family", "seed", "seconds")]
        lines = [columns, ["---"] * len(columns), *([shown(row.get(name)) for name in columns] for row in of)]
        blocks.append(f"### {family}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(blocks)


def main() -> int:
    """Run what was asked for and print the tables; 1 where a scenario failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="run the scenarios whose 'family: name' matches this expression")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent / "calibration.jsonl")
    parser.add_argument("--seed", type=int, default=SEED)
    asked = parser.parse_args()
    chosen = [scenario for scenario in SCENARIOS if re.search(asked.only, f"{scenario.family}: {scenario.name}")]
    if not chosen:
        parser.error(f"--only is {asked.only!r}; no scenario matches, such as '{SCENARIOS[0].family}: '")
    rows = run(chosen, asked.out, asked.seed)
    print(f"{datetime.now(UTC):%Y-%m-%d}, seed {asked.seed}, {sum(row['seconds'] for row in rows):.0f} s\n")
    print(markdown(rows))
    failed = [f"{row['family']}: {row['name']}" for row in rows if row["passed"] is False]
    print("\n" + (f"{len(failed)} failed: " + "; ".join(failed) if failed else "none failed"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
