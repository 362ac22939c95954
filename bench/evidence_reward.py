"""Reward models on real data and on the world: what differs beyond chance, and what does not.

`python bench/evidence_reward.py OUT [--only NAME ...]` trains three members of each setting, joins them, and prints one
table in Markdown. Each setting's runs stay in OUT; a setting whose ensemble.json is there is not trained again.
"""

import argparse
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from treeward.data.figures import floor
from treeward.data.prepare import prepare
from treeward.methods.reward import RewardRun
from treeward.methods.sft import SFT, SFTRun
from treeward.models.loading import load_tokenizer
from treeward.runner import run as runner
from treeward.runner import settings
from treeward.runner.members import train_members

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("TREEWARD_DATA") or ROOT / "../shared/data").resolve()
SEEDS = 3
HEADS: dict[str, dict[str, Any]] = {
    "scalar": {"head": {"kind": "scalar"}},
    "categorical": {"head": {"kind": "categorical"}},
    "ordinal": {"head": {"kind": "ordinal"}},
}
TWO = {name: HEADS[name] for name in ("scalar", "categorical")}
JOINT: dict[str, Any] = {"head": {"kind": "categorical"}, "loss": {"kind": "joint", "weight": 0.3}}


@dataclass(frozen=True)
class Question:
    """A data set, what all its settings share, and the settings that are compared on it."""

    common: dict[str, Any]
    settings: dict[str, dict[str, Any]] = field(default_factory=lambda: HEADS)


def small(tokenizer: str, vocabulary: int, end: int) -> dict[str, Any]:
    """A two-layer Llama of width 128 from random weights."""
    shape = settings.recipe("sentences-reward")["model"]["config"]
    return {
        "path": str(DATA / "model_configs/smollm2-135m"), "tokenizer": str(DATA / "tokenizers" / tokenizer),
        "init": "random", "config": {**shape, "vocab_size": vocabulary, "bos_token_id": end, "eos_token_id": end},
    }  # fmt: skip


def dialogue(name: str) -> dict[str, Any]:
    """HH: the prompt's tail and the reply."""
    source = str(DATA / f"hh-rlhf/{name}/test.jsonl.gz")
    return {
        "model": small("gpt2", 50257, 50256), "epochs": 4, "batch_size": 32, "lr": 5e-4,
        "data": {"source": source, "max_prompt": 64, "max_response": 128, "test": 0.2}, "skip_check": ["F13"],
    }  # fmt: skip


def questions(start: Path) -> dict[str, Question]:
    """Every question by its name; `start` is a policy that knows the world's grammar."""
    sentences = {
        "model": small("gpt2", 50257, 50256), "epochs": 4, "batch_size": 64, "lr": 1e-3,
        "data": {"source": str(DATA / "sentiment/rt_polarity.jsonl.gz"), "format": "text", "max_response": 96},
    }  # fmt: skip
    graded = {
        "model": small("smollm2-135m-instruct-rebuilt", 49152, 2), "epochs": 6, "batch_size": 32, "lr": 1e-3,
        "data": {"source": str(DATA / "graded/sf_binarized.jsonl.gz"), "test": 0.25, "max_prompt": 256},
    }  # fmt: skip
    read = {"model": {"path": str(start)}, "epochs": 2, "batch_size": 64, "lr": 1e-3}
    world = {**read, "data": {"source": "world:16000"}}
    rated = {**read, "data": {"source": "world-graded:6000"}}
    grades = {"kind": "graded", "scale": [-2.5, 2.0]}
    return {
        "sentences": Question(sentences),
        "helpful-base": Question(dialogue("helpful-base"), TWO),
        "harmless-base": Question(dialogue("harmless-base"), TWO),
        "graded": Question(graded, {**HEADS, "joint": JOINT}),
        "world": Question(world, TWO),
        "world-graded": Question(
            rated,
            {
                "categorical, graded": {"head": {"kind": "categorical"}, "loss": grades},
                "logistic, graded": {"head": {"kind": "logistic"}, "loss": grades},
            },
        ),
    }


def measured(name: str, setting: str, question: Question, out: Path) -> dict[str, Any]:
    """The ensemble's facts and its members' receipts, trained where they are not there yet."""
    path = out / name / setting.replace(", ", "-")
    if not (path / "ensemble.json").exists():
        config = settings.build(RewardRun, plan(question, setting) | {"members": SEEDS, "out": str(path)})
        train_members(config)
    receipts = [json.loads((path / f"member-{n + 1}" / "receipt.json").read_text()) for n in range(SEEDS)]
    return {"ways": json.loads((path / "ensemble.json").read_text())["ways"], "receipts": receipts}


def plan(question: Question, setting: str) -> dict[str, Any]:
    """The mapping of one setting's configuration."""
    return {**question.common, **question.settings[setting], "require": "any"}


def world_sft(out: Path) -> dict[str, Any]:
    """The recipe world-sft, into `out`."""
    return {name: value for name, value in settings.recipe("world-sft").items() if name != "command"} | {
        "out": str(out)
    }


def floor_of(question: Question) -> str:
    """The bag-of-words floor on the same pairs."""
    config = settings.build(RewardRun, plan(question, next(iter(question.settings))))
    texts = prepare(config.data, load_tokenizer(config.model), "pairs").texts
    sides = {
        part: [(tree.responses[0].text, tree.responses[1].text) for tree in texts[part]]
        for part in ("train", "test")
    }  # fmt: skip
    _, groups = np.unique([tree.group for tree in texts["test"]], return_inverse=True)
    found = floor(sides["train"], sides["test"], groups.tolist())
    return "–" if found is None else shown(vars(found.accuracy))


def shown(facts: dict[str, Any]) -> str:
    """A value with its interval."""
    return f"{facts['value']:.3f} [{facts['low']:.3f}, {facts['high']:.3f}]"


def lines(name: str, question: Question, out: Path) -> list[str]:
    """The rows of one question."""
    found = [f"| {name} | words, linear | {floor_of(question)} | | | | |"]
    for setting in question.settings:
        facts = measured(name, setting, question, out)
        accuracies = [r["metrics"].get("accuracy", r)["after"] for r in facts["receipts"]]
        spread = ", ".join(f"{a['value']:.3f}" for a in accuracies)
        ece = sum(r["calibration"]["ece"]["value"] for r in facts["receipts"]) / SEEDS
        joined = [facts["ways"][way] for way in ("mean", "WARM")]
        gains = " | ".join(
            f"{j['accuracy']['value']:.3f} ({j['against_member_1']['value']:+.3f} "
            f"[{j['against_member_1']['low']:+.3f}, {j['against_member_1']['high']:+.3f}])" for j in joined
        )  # fmt: skip
        verdicts = "/".join(r["verdict"] for r in facts["receipts"])
        found.append(
            f"| {name} (n={accuracies[0]['n']}) | {setting} | {shown(accuracies[0])}; {spread} | {gains} | {ece:.3f} | "
            f"{verdicts} |"
        )
    return found


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", metavar="NAME")
    asked = parser.parse_args()
    known = questions(asked.out / "sft" / "model")
    head = "| data | model | first member; each seed | mean of 3 (gain) | WARM of 3 (gain) | ECE | verdicts |"
    rows = [head, "|---|---|---|---|---|---|---|"]
    for name in asked.only or known:
        if name.startswith("world") and not (asked.out / "sft").exists():
            runner.run(settings.build(SFTRun, world_sft(asked.out / "sft")), SFT)
        rows += lines(name, known[name], asked.out)
        print("\n".join(rows), flush=True)
        rows = []


if __name__ == "__main__":
    main()
