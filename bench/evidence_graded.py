"""The recipes of HelpSteer2 from end to end on graded sentences: does a distribution over scores make a better reward?

`python bench/evidence_graded.py OUT` follows the published task with small models on shared data: a policy from
supervised fine-tuning on sentences of every quality, two reward models that start from it by the recipes
helpsteer2-reward and helpsteer2-reward-distribution, and a policy from each by helpsteer2-reinforce and
helpsteer2-reinforce-distribution, with equal settings and seeds. All are judged by a rule that no training uses, the
share of the act's values that a sentence says, and by both reward models. What is in OUT already is not made again.
"""

import argparse
import gzip
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

import slot_values
from evidence_dpo import shown
from made import made
from treeward.methods.reinforce import REINFORCE, ReinforceRun
from treeward.methods.reward import Reward, RewardRun
from treeward.methods.sft import SFT, SFTRun
from treeward.report.frontier import write_frontier
from treeward.runner import settings
from treeward.stats.intervals import paired_mean

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("TREEWARD_DATA") or ROOT / "../shared/data").resolve()
END = 2
SMALL: dict[str, Any] = {
    "path": str(DATA / "model_configs/smollm2-135m"), "init": "random",
    "tokenizer": str(DATA / "tokenizers/smollm2-135m-instruct-rebuilt"),
    "config": {**settings.recipe("sentences-reward")["model"]["config"], "vocab_size": 49152, "bos_token_id": 1,
               "eos_token_id": END},
}  # fmt: skip
"""A two-layer Llama of width 128 with SmolLM2's tokenizer and chat template."""
BESIDE = ("kl", "length", "ended", "repetition")
"""Metrics that stand beside score and judges."""
ARMS = {"scalar": "helpsteer2-reinforce", "distribution": "helpsteer2-reinforce-distribution"}


def part(prompt: str) -> str:
    """The part of a dialogue act, by a hash of its prompt: a quarter is for tests, a tenth for validation."""
    place = int.from_bytes(hashlib.sha256(f"part:{prompt}".encode()).digest()[:8]) / 2**64
    return "test" if place < 0.25 else "validation" if place < 0.35 else "train"


def user_turn(prompt: str) -> list[dict[str, str]]:
    """The prompt as a conversation, as in the pairs, so that all models read it through the chat template."""
    return [{"role": "user", "content": prompt}]


def assistant_turn(text: str) -> list[dict[str, str]]:
    """A response as a conversation."""
    return [{"role": "assistant", "content": text}]


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """A JSONL file, to a temporary name first."""
    temporary = path.with_suffix(".partial")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    temporary.rename(path)


def prepare(out: Path) -> None:
    """Sentences for the policy, pairs for the reward models, and prompts."""
    if (out / "prompts.jsonl").exists():
        return
    out.mkdir(parents=True, exist_ok=True)
    sentences, acts = [], {}
    for name, kind in (("sfhot", "hotel"), ("sfres", "restaurant")):
        for row in json.loads((DATA / f"graded/{name}.json").read_text()):
            prompt = f"Write one sentence that a {kind} search assistant would say to express this dialogue act: "
            prompt += row["source"]
            sentences.append(
                {"prompt": user_turn(prompt), "completion": assistant_turn(row["system_output"]), "split": part(prompt)}
            )
            acts[prompt] = row["source"]
    write(out / "sentences.jsonl", sentences)
    with gzip.open(DATA / "graded/sf_binarized.jsonl.gz", "rt", encoding="utf-8") as file:
        pairs = [row | {"split": part(row["prompt"])} for row in map(json.loads, file)]
    write(out / "pairs.jsonl", pairs)
    write(
        out / "prompts.jsonl",
        ({"prompt": user_turn(prompt), "act": act, "split": part(prompt)} for prompt, act in acts.items()),
    )


def merged(*layers: dict[str, Any]) -> dict[str, Any]:
    """Settings, the later ones over the earlier ones."""
    fields: dict[str, Any] = {"require": "any"}
    for layer in layers:
        fields = settings.merge(fields, layer)
    return fields


def source(out: Path, name: str, **more: Any) -> dict[str, Any]:
    """The data of a run in place of the recipe's."""
    return {"source": str(out / f"data/{name}.jsonl"), "split": None, "shares": "expected", "max_prompt": 256, **more}


def main() -> None:
    """Make what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    asked = parser.parse_args()
    out: Path = asked.out
    prepare(out / "data")
    policy = made(SFTRun, SFT, {
        "model": SMALL, "data": source(out, "sentences"), "epochs": 12, "batch_size": 32, "lr": 1e-3,
        "schedule": "cosine", "evaluation": {"prompts": 64, "samples": 2},
    }, out / "sft")  # fmt: skip
    trained = {"model": {"path": str(policy)}, "data": source(out, "pairs"), "epochs": 4, "batch_size": 16, "lr": 1e-4}
    rewards = {
        name: made(RewardRun, Reward, merged(settings.recipe(recipe), trained), out / f"reward-{name}")
        for name, recipe in (("scalar", "helpsteer2-reward"), ("distribution", "helpsteer2-reward-distribution"))
    }
    for name in rewards:
        accuracy = json.loads((out / f"reward-{name}" / "receipt.json").read_text())["after"]
        print(f"reward-{name}: accuracy {shown(accuracy)}, n={accuracy['n']}")
    said = f"{Path(slot_values.__file__)}:share_said"
    done = []
    for seed in range(asked.seeds):
        for arm, recipe in ARMS.items():
            given = settings.recipe(recipe)
            reading = str(given["reward"]).partition("#")
            made(ReinforceRun, REINFORCE, merged(given, {
                "model": {"path": str(policy)}, "data": source(out, "prompts", format="prompts"),
                "reward": str(rewards[arm]) + reading[1] + reading[2], "lr": 3e-4, "steps": asked.steps, "seed": seed,
                "max_new_tokens": 48,
                "evaluation": {"scorer": said, "judges": [str(path) for path in rewards.values()], "prompts": 128},
            }), out / f"{arm}-{seed}")  # fmt: skip
            done.append(out / f"{arm}-{seed}")
    print("\n".join(table(done)))
    print(f"\ndistribution against scalar: {against(out, asked.seeds)}")
    page = out / "frontier.html"
    page.unlink(missing_ok=True)
    page.with_suffix(".png").unlink(missing_ok=True)
    print(f"\n{write_frontier(done, page)}")


def against(out: Path, seeds: int) -> str:
    """The rule's score of the distribution's policies against the scalar's, by prompt, each a mean over the seeds."""

    def scores(arm: str) -> dict[str, float]:
        by_prompt: dict[str, list[float]] = {}
        for seed in range(seeds):
            for line in (out / f"{arm}-{seed}/evaluation.jsonl").read_text().splitlines():
                row = json.loads(line)
                by_prompt.setdefault(row["group"], []).append(row["after"]["score"])
        return {prompt: fmean(values) for prompt, values in by_prompt.items()}

    before, after = scores("scalar"), scores("distribution")
    gain = paired_mean(list(before.values()), [after[prompt] for prompt in before], list(before))
    change = f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
    return f"score {change}, p={gain.p:.2g}, over {len(before)} prompts, given these {seeds} seeds"


def table(runs: list[Path]) -> list[str]:
    """One row a run, the start first."""
    rows: list[str] = []
    for run in runs:
        receipt = json.loads((run / "receipt.json").read_text())
        metrics = receipt["metrics"]
        judges = [key for key in metrics if key.startswith("judge:")]
        if not rows:
            names = ["run", "score", *map(short, judges), *BESIDE, "verdict"]
            rows += ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
        for side in ("before", "after") if len(rows) == 2 else ("after",):
            values = [receipt[side], *(metrics[key][side] for key in (*judges, *BESIDE))]
            name = "start" if side == "before" else run.name
            verdict = receipt["verdict"] if side == "after" else ""
            rows.append("| " + " | ".join([name, *map(shown, values), verdict]) + " |")
    return rows


def short(name: str) -> str:
    """The last parts of a judge's name."""
    return "/".join(name.split("/")[-2:])


if __name__ == "__main__":
    main()
