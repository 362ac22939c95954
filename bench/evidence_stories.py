"""REINFORCE, DPO and best of n on stories of a public checkpoint, with a verifiable and with a learned reward.

`python bench/evidence_stories.py OUT --film FILM` samples eight stories for each opening of examples/story_words.py
from stories260K, makes pairs of them, and trains on the same openings by the recipes examples/stories-words.yaml and
examples/stories-sentiment.yaml, with leave-one-out and with a moving average, and by DPO on the pairs. It prints one
table a reward in Markdown and ten stories before and after, and writes one frontier a reward. FILM is the directory of
evidence_reinforce.py, whose reward model and judge of film sentences serve for sentiment. What is in OUT already is not
made again; `--only NAME` trains some settings.
"""

import argparse
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import evidence_graded as graded
from evidence_dpo import best_of_n, changes
from evidence_reinforce import rows_of, ten_rows
from made import made
from treeward.methods.dpo import DPO, DPORun
from treeward.methods.method import Method, RunConfig
from treeward.methods.reinforce import REINFORCE, ReinforceRun
from treeward.report.frontier import write_frontier
from treeward.runner import settings
from treeward.runner.pairs import PairsRun, make_pairs

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("TREEWARD_DATA") or ROOT / "../shared/data").resolve()
EXAMPLES = ROOT / "examples"

MODEL = {"path": str(DATA / "models/stories260k")}
START_TOKEN = "<s>"
"""Stories begin with it, and the tokenizer does not add it to plain text."""
WORDS = f"{EXAMPLES / 'story_words.py'}:share_contained"
BOTH = f"{EXAMPLES / 'story_words.py'}:contains_both"
DPO_SETTING: dict[str, Any] = {"epochs": 2, "batch_size": 32, "lr": 1e-4, "loss": {"kind": "sigmoid", "beta": 0.1}}


@dataclass(frozen=True)
class Reward:
    """What trains, what is measured, and the recipe."""

    recipe: str
    trains: str
    evaluation: dict[str, Any]
    pairs: dict[str, Any]


def rewards(film: Path) -> dict[str, Reward]:
    """The verifiable reward and the learned one."""
    sentiment, judge = str(film / "reward/model"), str(film / "judge/model")
    return {
        "words": Reward("stories-words", WORDS, {"scorer": BOTH}, {"max_new_tokens": 192, "min_gap": 0.5}),
        "sentiment": Reward("stories-sentiment", sentiment, {"judges": [judge]}, {"max_new_tokens": 96}),
    }


def openings(out: Path) -> Path:
    """The openings of stories, made if they are missing."""
    path = out / "openings.jsonl"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, str(EXAMPLES / "story_words.py"), str(path), START_TOKEN], check=True)
    return path


def pairs(out: Path, name: str, reward: Reward) -> Path:
    """The three best against the three worst of an opening's eight stories; openings of the test part are measured."""
    path = out / name / "pairs"
    if not (path / "report.json").exists():
        make_pairs(settings.build(PairsRun, {
            "model": MODEL, "data": {"source": str(openings(out)), "test": 0.25, "validation": 0.15},
            "scorer": reward.trains, "samples": 8, "select": {"kind": "top-bottom", "k": 3},
            "skip_check": ["first-samples-end"], "out": str(path), **reward.pairs,
        }))  # fmt: skip
    return path / "pairs.jsonl"


def runs(name: str, reward: Reward, source: Path) -> dict[str, tuple[type[RunConfig], type[Method], dict[str, Any]]]:
    """Every setting by its name."""
    recipe = settings.recipe(str(EXAMPLES / f"{reward.recipe}.yaml"))
    shared = {"model": MODEL, "data": {"source": str(source), "test": 0, "validation": 0}, "require": "any"}
    evaluation = {"evaluation": recipe["evaluation"] | {"scorer": reward.trains} | reward.evaluation}
    reinforce = {**recipe, **shared, **evaluation, "reward": [reward.trains]}
    baselines = ("leave-one-out", "moving-average")
    return {
        **{kind: (ReinforceRun, REINFORCE, {**reinforce, "baseline": {"kind": kind}}) for kind in baselines},
        "dpo": (
            DPORun,
            DPO,
            {**shared, **DPO_SETTING, "evaluation": {"max_new_tokens": 96, **evaluation["evaluation"]}},
        ),
    }


def main() -> None:
    """Make what is missing and print the tables and the stories."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--film", type=Path, required=True)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="settings such as `words/leave-one-out`")
    asked = parser.parse_args()
    for name, reward in rewards(asked.film).items():
        if asked.only is not None and not any(setting.startswith(f"{name}/") for setting in asked.only):
            continue
        source = pairs(asked.out, name, reward)
        done = []
        for setting, (config, method, fields) in runs(name, reward, source).items():
            path = asked.out / name / setting
            if asked.only is None or f"{name}/{setting}" in asked.only:
                made(config, method, fields, path)
            if (path / "receipt.json").exists():
                done.append(path)
        print(f"\n{name}\n\n" + "\n".join(graded.table(done)))
        print("\n" + "\n".join([best_of_n(done[0]), *(line for run in done for line in changes(run))]))
        print(
            f"\nStories of {done[0].name}, before and after:\n\n"
            + "\n".join(stories(done[0], openings(asked.out) if name == "words" else None))
        )
        page = asked.out / f"{name}-frontier.html"
        page.unlink(missing_ok=True)
        page.with_suffix(".png").unlink(missing_ok=True)
        print(f"\n{write_frontier(done, page)}")


def stories(run: Path, prompts: Path | None) -> list[str]:
    """Ten stories before and after training in Markdown, with their scores; words that `prompts` ask for are bold."""
    words: dict[str, list[str]] = {}
    if prompts is not None:
        words = {row["prompt"].removeprefix(START_TOKEN): row["words"] for row in rows_of(prompts)}
    lines = []
    for row in ten_rows(run):
        asked_for = words.get(row["prompt"], [])
        lines.append(f"- *{row['prompt'].strip()}*" + (f" ({', '.join(asked_for)})" if asked_for else ""))
        for side in ("before", "after"):
            text = " ".join(row[side].split())
            for word in asked_for:
                text = re.sub(rf"\b({word}s?)\b", r"**\1**", text, flags=re.IGNORECASE)
            lines.append(f"  - {side} ({row[f'score_{side}']:.2g}): {text}")
    return lines


if __name__ == "__main__":
    main()
