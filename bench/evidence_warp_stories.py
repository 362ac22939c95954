"""WARP and REINFORCE on stories of a public checkpoint, with a learned reward of sentiment, at equal compute.

`python bench/evidence_warp_stories.py OUT --film FILM` uses the openings and the recipe of evidence_stories.py (OUT is
its directory) and the reward model and the judge of evidence_reinforce.py (FILM). WARP takes two iterations of two
members, each a quarter of REINFORCE's steps; REINFORCE is run as one member with the start as its reference, so that
both have a front: the interpolation from the start. It prints both fronts, how they differ, the figures of the last
policies with the judge's, and ten stories of each side by side. What is in OUT already is not made again.
"""

import argparse
from pathlib import Path
from typing import Any

from evidence_dpo import changes
from evidence_reinforce import ten_rows
from evidence_stories import EXAMPLES, MODEL, openings
from evidence_warp_film import angles, front
from treeward.report.frontier import write_frontier
from treeward.runner import settings
from treeward.runner.warp import WarpRun, warp

ARMS: dict[str, dict[str, Any]] = {
    "warp": {"iterations": 2, "members": 2, "reference": {"rate": 0.05}},
    "one-member": {"iterations": 1, "members": 1, "reference": {"kind": "frozen"}},
}


def main() -> None:
    """Make what is missing and print the tables and the stories."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--film", type=Path, required=True)
    asked = parser.parse_args()
    reward, judge = str(asked.film / "reward/model"), str(asked.film / "judge/model")
    recipe = settings.recipe(str(EXAMPLES / "stories-sentiment.yaml"))
    steps = recipe["steps"]
    del recipe["command"], recipe["evaluate_every"]
    runs = {arm: asked.out / "sentiment-warp" / arm for arm in ARMS}
    for arm, fields in ARMS.items():
        if not (runs[arm] / "receipt.json").exists():
            warp(settings.build(WarpRun, {
                **recipe, **fields, "steps": steps // (fields["iterations"] * fields["members"]), "choose": "1",
                "model": MODEL, "data": {**recipe["data"], "source": str(openings(asked.out))},
                "reward": [reward], "threads": 1, "require": "any", "out": str(runs[arm]),
                "evaluation": {**recipe["evaluation"], "scorer": reward, "judges": [judge]},
            }))  # fmt: skip
    for arm, run in runs.items():
        print(f"\n{arm}\n\n" + "\n".join([*front(run), *(angles(run) if arm == "warp" else []), *changes(run)]))
    page = asked.out / "sentiment-warp" / "frontier.html"
    page.unlink(missing_ok=True)
    page.with_suffix(".png").unlink(missing_ok=True)
    print(f"\n{write_frontier(list(runs.values()), page)}\n\nStories of the start, WARP and one member:\n")
    for rows in zip(*map(ten_rows, runs.values()), strict=True):
        print(
            f"- *{rows[0]['prompt'].strip()}*\n  - start ({rows[0]['score_before']:.2g}): {one_line(rows[0]['before'])}"
        )
        for arm, row in zip(runs, rows, strict=True):
            print(f"  - {arm} ({row['score_after']:.2g}): {one_line(row['after'])}")


def one_line(text: str) -> str:
    """A story without its line breaks."""
    return " ".join(text.split())


if __name__ == "__main__":
    main()
