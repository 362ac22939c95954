"""REINFORCE with a moving average against leave-one-out, and both against TRL's RLOOTrainer, on the embedded sums.

`python bench/evidence_rloo.py OUT` trains a policy on texts with 30 % wrong answers, then each arm from it on right
answers alone: equally many steps and samples, the same rate and KL coefficient, three seeds. Every arm's last weights
answer the same held-out problems. What is in OUT already is not made again.

A moving average needs one sample a prompt, leave-one-out at least two. So the moving average has two arms: 32 prompts
with 8 samples, as the others, and 256 prompts with one.
"""

import argparse
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np

import peer
from made import made
from treeward.methods.reinforce import REINFORCE, ReinforceRun
from treeward.methods.sft import SFT, SFTRun
from treeward.runner import settings
from treeward.runner.evaluate import EvaluateRun, evaluate
from treeward.stats.intervals import clustered_mean

HERE = Path(__file__).resolve().parent
STEPS, PROMPTS, SAMPLES, TOKENS, LR, BETA, WARMUP = 300, 32, 8, 6, 1e-4, 0.01, 0.03
ARMS: dict[str, dict[str, Any]] = {
    "moving-average": {"baseline": {"kind": "moving-average"}},
    "leave-one-out": {"baseline": {"kind": "leave-one-out"}},
    "moving-average, one sample a prompt": {
        "baseline": {"kind": "moving-average"}, "batch_size": PROMPTS * SAMPLES, "samples": 1,
    },
}  # fmt: skip
TRL = "TRL RLOOTrainer"


def train(start: Path, out: Path, fields: dict[str, Any], seed: int) -> None:
    """One of our arms; nothing is measured on the way, so the last weights are kept."""
    shared: dict[str, Any] = {
        **settings.recipe("arithmetic-reinforce"), "batch_size": PROMPTS, "samples": SAMPLES, "steps": STEPS, "lr": LR,
        "kl": {"beta": BETA}, "warmup": WARMUP, "unfinished": "keep", "max_new_tokens": TOKENS, "require": "any",
        "evaluate_every": STEPS, "model": {"path": str(start)}, "seed": seed,
    }  # fmt: skip
    made(ReinforceRun, REINFORCE, {**shared, **fields}, out)


def train_with_trl(start: Path, out: Path, seed: int, problems: Path) -> None:
    """TRL's arm, on the prompts of our training part."""
    values = {"model": start, "problems": problems, "out": out, "steps": STEPS, "prompts": PROMPTS, "samples": SAMPLES,
             "tokens": TOKENS, "seed": seed, "lr": LR, "beta": BETA, "warmup": WARMUP}  # fmt: skip
    python = peer.ready(HERE.parent)
    options = [text for key, value in values.items() for text in (f"--{key}", str(value))]
    subprocess.run([str(python), str(HERE / "evidence_rloo_trl.py"), *options], check=True)


def training_problems(start: Path, file: Path) -> Path:
    """The problems of the training part as JSON lines."""
    if not file.exists():
        config = settings.build(
            ReinforceRun,
            {"data": {"source": "arithmetic", "keep": ["answer"]}, "reward": "exact-match",
             "model": {"path": str(start)}, "max_new_tokens": TOKENS},
        )  # fmt: skip
        method = REINFORCE(config)
        trees = method.prepare(method.model.tokenizer).train
        rows = [{"prompt": method.model.tokenizer.decode(tree.prompt, skip_special_tokens=True), **(tree.row or {})}
                for tree in trees]  # fmt: skip
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def main() -> None:
    """Make what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    start = made(SFTRun, SFT, settings.recipe("arithmetic-sft") | {"require": "any"}, asked.out / "sft")
    problems = training_problems(start, asked.out / "problems.jsonl")
    results: dict[str, list[tuple[float, float]]] = {}
    for seed in range(asked.seeds):
        for name in (*ARMS, TRL):
            out = asked.out / f"{name} {seed}"
            if not (out / "model" / "config.json").exists():
                clock = time.monotonic()
                if name == TRL:
                    train_with_trl(start, out, seed, problems)
                else:
                    train(start, out, ARMS[name], seed)
                print(f"{name}, seed {seed}: {time.monotonic() - clock:.0f} s", flush=True)
            figures = evaluate(settings.build(EvaluateRun, {
                "model": {"path": str(out / "model")}, "start": str(start),
                "data": {"source": "arithmetic", "format": "prompts", "keep": ["answer"]}, "seed": seed,
                "evaluation": {"scorer": "exact-match", "prompts": 400, "samples": 4, "max_new_tokens": TOKENS},
            })).figures  # fmt: skip
            results.setdefault(name, []).append((figures["score"]["value"], figures["kl"]["value"]))
    print("| arm | right answers, share | KL, nats |\n|---|---|---|")
    for name, pairs in results.items():
        print(f"| {name} | " + " | ".join(map(over_seeds, np.array(pairs).T)) + " |")


def over_seeds(values: "np.ndarray[Any, Any]") -> str:
    """The mean over seeds with its 95 % interval, and each seed's value."""
    mean = clustered_mean(values, range(len(values)))
    each = ", ".join(f"{value:.3f}" for value in values)
    return f"{mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}] ({each})"


if __name__ == "__main__":
    main()
