"""The recipe imdb-warp at full size with 3 steps a member: does it run whole, how long does it take, in what memory?

`python bench/evidence_warp_gpt2.py OUT` makes a GPT-2 of 124M parameters and a DistilBERT classifier with random
weights from their public configurations. It runs the recipe with them on openings of film reviews: two iterations of
two members, batch 64, 53 new tokens. Prints what a step and an evaluated sample took, the peak memory, and from these
an estimate for the recipe with 100 steps and 256 prompts.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import transformers
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

import treeward as tw
from evidence_dpo import DATA
from treeward.models.loading import ModelConfig
from treeward.models.policy import Policy
from treeward.runner import settings
from treeward.runner.warp import WarpRun, warp

STEPS, PROMPTS, SAMPLES = 3, 8, 2


def models(out: Path) -> tuple[Path, Path]:
    """The start and the classifier, both with random weights."""
    start, classifier = out / "start", out / "classifier"
    if not start.exists():
        gpt2 = ModelConfig(
            path=str(DATA / "model_configs/gpt2"), init="random", tokenizer=str(DATA / "tokenizers/gpt2"), device="cpu"
        )
        Policy.from_config(gpt2, seed=0).save(start)
    if not classifier.exists():
        transformers.set_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(DATA / "tokenizers/gpt2")
        shape = AutoConfig.from_pretrained(
            DATA / "model_configs/distilbert-base-cased", vocab_size=len(tokenizer), num_labels=2, pad_token_id=0,
            id2label={0: "NEGATIVE", 1: "POSITIVE"}, label2id={"NEGATIVE": 0, "POSITIVE": 1},
        )  # fmt: skip
        AutoModelForSequenceClassification.from_config(shape).save_pretrained(classifier)
        tokenizer.save_pretrained(classifier)
    return start, classifier


def evaluated_samples(config: Any, prompts: int, samples: int) -> int:
    """Samples that a run of WARP measures: the start, each share and the last members on two parts; each member's start
    and end on the test part.
    """
    front = 2 * (len({*config.front, 1.0}) + config.members) + 1
    return int((front + 2 * config.iterations * config.members) * prompts * samples)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    start, classifier = models(out)
    recipe = settings.recipe("imdb-warp")
    full = settings.build(WarpRun, {name: value for name, value in recipe.items() if name != "command"})
    changes = {
        "model": {"path": str(start), "precision": "fp32"}, "reward": f"{classifier}#POSITIVE", "steps": STEPS,
        "data": {"source": str(DATA / "sentiment/movie_reviews.jsonl.gz"), "split": None, "limit": 400},
        "evaluation": {"prompts": PROMPTS, "samples": SAMPLES, "max_new_tokens": recipe["max_new_tokens"]},
        "require": "any", "skip_check": ["enough-groups"], "out": str(out / "run"),
    }  # fmt: skip
    config = settings.build(WarpRun, settings.merge({k: v for k, v in recipe.items() if k != "command"}, changes))
    begun = time.monotonic()
    warp(config)
    wall = time.monotonic() - begun
    receipt = json.loads((out / "run/receipt.json").read_text())
    count = config.iterations * config.members
    step = receipt["seconds"] / (count * STEPS)
    parts = {name: seconds / (count * STEPS) for name, seconds in receipt["rollout_seconds"].items()}
    prompts = tw.load(str(config.data.source), format="text", limit=400).test[:PROMPTS]
    policy = tw.Policy.load(str(out / "run"), precision="fp32")
    begun = time.monotonic()
    tw.evaluate(policy, prompts, scorer=f"{classifier}#POSITIVE", reference=policy.frozen_copy(), n=SAMPLES,
                max_new_tokens=recipe["max_new_tokens"])  # fmt: skip
    sample = (time.monotonic() - begun) / (PROMPTS * SAMPLES)
    rest = wall - receipt["seconds"] - sample * evaluated_samples(config, PROMPTS, SAMPLES)
    split = ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts.items())
    print(
        f"{config.iterations} x {config.members} members x {STEPS} steps of {config.batch_size} prompts: {wall:.0f} s"
    )
    print(f"a step {step:.1f} s ({split}); an evaluated sample {sample:.2f} s; all else {rest:.0f} s")
    print(f"peak memory of a member {receipt['peak_gb']:.1f} GB; verdict {receipt['verdict']}")
    assert full.steps is not None
    steps = full.steps * count * step
    measuring = evaluated_samples(full, full.evaluation.prompts, full.evaluation.samples) * sample
    print(
        f"the recipe itself on this machine: {steps / 3600:.1f} h of training and {measuring / 3600:.1f} h of measures "
        f"({full.steps} steps, {full.evaluation.prompts} prompts x {full.evaluation.samples} samples)"
    )


if __name__ == "__main__":
    main()
