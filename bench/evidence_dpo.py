"""DPO on film reviews: a policy from scratch, its own samples as pairs, and what each loss makes of them.

`python bench/evidence_dpo.py OUT` trains a small language model on review text, a reward model on one half of the
labelled snippets and a judge (another architecture, tokenizer and half) that training never sees, makes pairs of the
policy's own samples, and trains on them with every loss at three betas, the main ones with three seeds. It prints one
table in Markdown and writes the frontier. What is in OUT already is not made again; `--only NAME` runs some settings.
"""

import argparse
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import film
from made import made
from treeward.methods.dpo import DPO, DPORun
from treeward.methods.reward import Reward, RewardRun
from treeward.methods.sft import SFT, SFTRun
from treeward.report.frontier import write_frontier
from treeward.runner import settings
from treeward.runner.pairs import PairsRun, make_pairs

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("TREEWARD_DATA") or ROOT / "../shared/data").resolve()
BETAS = (0.05, 0.1, 0.5)
SEEDS = (0, 1, 2)
MAIN_BETA = 0.1
SIGMOID = {"kind": "sigmoid"}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[float, ...]]] = {
    "sigmoid": (SIGMOID, {}, BETAS),
    "hinge": ({"kind": "hinge"}, {}, BETAS),
    "ipo": ({"kind": "ipo"}, {}, (0.5, 1.0, 5.0)),
    "js": (SIGMOID, {"kind": "jensen-shannon"}, BETAS),
    "forward-kl": (SIGMOID, {"kind": "forward-kl"}, BETAS),
    "alpha-0.3": (SIGMOID, {"kind": "alpha", "alpha": 0.3}, BETAS),
    "alpha-0.5": (SIGMOID, {"kind": "alpha", "alpha": 0.5}, BETAS),
    "alpha-0.7": (SIGMOID, {"kind": "alpha", "alpha": 0.7}, BETAS),
}
"""Loss, divergence and betas; IPO's beta sets a target per token, 1 / (2 beta) nats, so its scale is another one."""
SEEDED = ("sigmoid", "js", "forward-kl")


def points() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every setting's name and its fields."""
    for name, (loss, divergence, betas) in KINDS.items():
        for beta in betas:
            for seed in SEEDS if name in SEEDED and beta == MAIN_BETA else SEEDS[:1]:
                fields: dict[str, Any] = {"loss": {**loss, "beta": beta}, "seed": seed}
                if divergence:
                    fields["divergence"] = divergence
                yield f"{name} {beta:g}" + (f" seed {seed}" if seed else ""), fields


def shaped(config: str, tokenizer: str, shape: Mapping[str, Any]) -> dict[str, Any]:
    """A model of random weights."""
    return {"path": str(DATA / "model_configs" / config), "tokenizer": str(DATA / "tokenizers" / tokenizer),
            "init": "random", "config": dict(shape)}  # fmt: skip


def policy(out: Path) -> Path:
    """The language model of 5.6M parameters, trained on review text."""
    shape = {"vocab_size": 2003, "hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 4,
             "num_attention_heads": 5, "num_key_value_heads": 5, "bos_token_id": 2002, "eos_token_id": 2002,
             "max_position_embeddings": 512}  # fmt: skip
    return made(SFTRun, SFT, {
        "model": shaped("smollm2-135m", "torchtune-tiny-2000", shape), "epochs": 4, "batch_size": 64, "lr": 1.5e-3,
        "data": {"source": str(out / "data/texts.jsonl"), "format": "text", "max_response": 160},
        "schedule": "cosine", "evaluation": {"prompts": 32, "samples": 2}, "evaluate_every": 120,
    }, out / "sft")  # fmt: skip


def judges(out: Path) -> tuple[Path, Path]:
    """The reward model (a decoder) and the judge (an encoder), of different halves of the snippets."""
    small = {**settings.recipe("sentences-reward")["model"]["config"]}
    encoder = {"vocab_size": 2003, "dim": 128, "hidden_dim": 384, "n_layers": 2, "n_heads": 4}
    models = {
        "reward": (shaped("smollm2-135m", "gpt2", small), 4),
        "judge": (shaped("distilbert-base-cased", "torchtune-tiny-2000", encoder), 6),
    }
    reward, judge = (
        made(RewardRun, Reward, {
            "model": model, "epochs": epochs, "batch_size": 64, "lr": 1e-3, "require": "any",
            "data": {"source": str(out / f"data/{name}.jsonl"), "format": "text", "max_response": 96},
        }, out / name)
        for name, (model, epochs) in models.items()
    )  # fmt: skip
    return reward, judge


def pairs(out: Path, start: Path, reward: Path) -> Path:
    """Best against worst of eight samples for openings of texts, those of the test part for the evaluation."""
    if not (out / "pairs" / "report.json").exists():
        make_pairs(settings.build(PairsRun, {
            "model": {"path": str(start)}, "data": {"source": str(out / "data/prompts.jsonl"), "format": "text"},
            "scorer": str(reward), "samples": 8, "max_new_tokens": 48, "out": str(out / "pairs"),
        }))  # fmt: skip
    return out / "pairs" / "pairs.jsonl"


def main() -> None:
    """Make what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="settings such as `sigmoid 0.1`")
    asked = parser.parse_args()
    film.prepare(DATA, asked.out / "data")
    start, (reward, judge) = policy(asked.out), judges(asked.out)
    data = pairs(asked.out, start, reward)
    done = []
    for name, fields in points():
        path = asked.out / "dpo" / name
        if asked.only is None or name in asked.only:
            made(DPORun, DPO, {
                "model": {"path": str(start)}, "data": {"source": str(data)}, **SETTING, **fields, "require": "any",
                "evaluation": {"scorer": str(reward), "judges": [str(judge)], "prompts": 128, "samples": 4,
                               "max_new_tokens": 48},
            }, path)  # fmt: skip
        if (path / "receipt.json").exists():
            done.append(path)
    print("\n".join(table(done)))
    page = asked.out / "frontier.html"
    page.unlink(missing_ok=True)
    page.with_suffix(".png").unlink(missing_ok=True)
    print(f"\n{write_frontier(done, page)}")


SETTING = {"epochs": 2, "batch_size": 32, "lr": 3e-4, "skip_check": ["F42"]}
"""What all runs share."""


def table(runs: list[Path]) -> list[str]:
    """One row a run, the start first; every change is paired, with its 95 % interval."""
    names = ("score", "judge", "KL", "pooled entropy", "distinct-2", "perplexity under the start", "verdict")
    rows = ["| setting | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 1)]
    for run in runs:
        receipt = json.loads((run / "receipt.json").read_text())
        if len(rows) == 2:
            rows.append(line("start", receipt, "before", ""))
        rows.append(line(run.name, receipt, "after", receipt["verdict"]))
    return rows


def line(name: str, receipt: Mapping[str, Any], side: str, verdict: str) -> str:
    """A run's figures before or after training."""
    metrics, diversity = receipt["metrics"], receipt["diversity"]
    (judge,) = (facts for key, facts in metrics.items() if key.startswith("judge:"))
    found = [receipt[side], judge[side], metrics["kl"][side], diversity["token_entropy"][side],
             diversity["distinct_2"][side], diversity["perplexity"][side]]  # fmt: skip
    return " | ".join([f"| {name}", *map(shown, found), f"{verdict} |"])


def best_of_n(run: Path) -> str:
    """Best of n of a run's start, with the bound of its KL."""
    receipt = json.loads((run / "receipt.json").read_text())
    points = [
        f"n={row['n']} {shown(row['score'])} at {row['kl_bound']:.2f} nats" for row in receipt["best_of_n"]["curve"]
    ]
    return f"best of n of the start: {', '.join(points)}"


def changes(run: Path) -> list[str]:
    """The paired changes of a run's score and judges, and its perplexity under the start."""
    receipt = json.loads((run / "receipt.json").read_text())
    paired = {receipt["metric"]: receipt["difference"]}
    paired |= {name: facts["difference"] for name, facts in receipt["metrics"].items() if name.startswith("judge:")}
    before, after = (shown(receipt["diversity"]["perplexity"][side]) for side in ("before", "after"))
    lines = [f"{run.name}: change of {name} {shown(facts)}" for name, facts in paired.items()]
    return [*lines, f"{run.name}: perplexity under the start {before} -> {after}"]


def shown(facts: Mapping[str, Any]) -> str:
    """A value with its interval; a value that is the same for all prompts has none."""
    bounds = [facts["low"], facts["high"]]
    low, high = ("–" if bound is None else f"{bound:.3g}" for bound in bounds)
    return f"{facts['value']:.3g} [{low}, {high}]"


if __name__ == "__main__":
    main()
