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
from film import rows, write
from treeward.models.loading import ModelConfig
from treeward.models.policy import Policy
from treeward.runner import settings
from treeward.runner.warp import WarpRun, warp

STEPS, PROMPTS, SAMPLES, MANY = 3, 8, 2, 16
CHARACTERS = 280
"""Of a review: about the 64 tokens that the recipe keeps of a text."""


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


def measurements(config: WarpRun) -> int:
    """How often a run of WARP measures a policy.

    The start once, each share and the last members on two parts, and each member before and after its training.
    """
    return 1 + 2 * (len({*config.front, 1.0}) + config.members) + 2 * config.iterations * config.members


def measuring(run: Path, scorer: str, prompts: Any, tokens: int) -> float:
    """Seconds a sample of a measurement of many samples, after a first one that also verifies the layout."""
    policy = tw.Policy.load(str(run), precision="fp32")
    reference = policy.frozen_copy()
    for samples in (1, MANY):
        begun = time.monotonic()
        tw.evaluate(policy, prompts, scorer=scorer, reference=reference, n=samples, max_new_tokens=tokens)
    return (time.monotonic() - begun) / (MANY * len(prompts))


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    start, classifier = models(out)
    reviews = rows(DATA / "sentiment/movie_reviews.jsonl.gz")[:400]
    write(out / "openings.jsonl", ({"text": row["text"][:CHARACTERS]} for row in reviews))
    recipe = settings.recipe("imdb-warp")
    full = settings.build(WarpRun, {name: value for name, value in recipe.items() if name != "command"})
    changes = {
        "model": {"path": str(start), "precision": "fp32"}, "reward": f"{classifier}#POSITIVE", "steps": STEPS,
        "data": {"source": str(out / "openings.jsonl"), "split": None},
        "evaluation": {"prompts": PROMPTS, "samples": SAMPLES, "max_new_tokens": recipe["max_new_tokens"]},
        "require": "any", "skip_check": ["enough-groups"], "out": str(out / "run"),
    }  # fmt: skip
    config = settings.build(WarpRun, settings.merge({k: v for k, v in recipe.items() if k != "command"}, changes))
    begun = time.monotonic()
    begun_before = (out / "run/config.yaml").exists()
    if not (out / "run/receipt.json").exists():
        warp(config)
    wall = time.monotonic() - begun
    receipt = json.loads((out / "run/receipt.json").read_text())
    members = [json.loads(file.read_text()) for file in (out / "run").glob("iteration-*/member-*/receipt.json")]
    step = receipt["seconds"] / (len(members) * STEPS)
    parts = {name: seconds / (len(members) * STEPS) for name, seconds in receipt["rollout_seconds"].items()}
    prompts = tw.load(str(config.data.source), format="text").test[:PROMPTS]
    sample = measuring(out / "run", f"{classifier}#POSITIVE", prompts, recipe["max_new_tokens"])
    if not begun_before:
        print(f"{len(members)} members of {STEPS} steps of {config.batch_size} prompts, merges and front: {wall:.0f} s")
    print(f"a step {step:.1f} s, of which {', '.join(f'{name} {seconds:.1f}' for name, seconds in parts.items())}")
    print(f"a measured sample {sample:.2f} s")
    print(f"peak memory {max(each['peak_gb'] for each in members):.1f} GB a member, {receipt['peak_gb']:.1f} GB in all")
    assert full.steps is not None
    training = full.steps * len(members) * step
    measures = measurements(full) * full.evaluation.prompts * full.evaluation.samples * sample
    print(
        f"the recipe itself on this machine: {training / 3600:.1f} h of training and {measures / 3600:.1f} h of "
        f"measuring ({full.steps} steps, {full.evaluation.prompts} prompts x {full.evaluation.samples} samples)"
    )


if __name__ == "__main__":
    main()
