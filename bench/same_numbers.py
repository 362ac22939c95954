"""Compare two versions of the code: short runs on the embedded world must print the same numbers, to the digit.

    python bench/same_numbers.py record BEFORE      # with the old code; about three minutes on one core
    python bench/same_numbers.py record AFTER       # with the new code, on the same machine
    python bench/same_numbers.py compare BEFORE AFTER

Compared are every line of metrics.jsonl, every sample, and of the receipt the verdict and each metric's before, after
and difference, and the checks by id. Times and hashes of parameter names are left out. Keys that were renamed on
purpose are in `RENAMED`. New keys and checks are listed and are no difference, nor is a check that was skipped before
and passes now. The exit code is 1 if a number differs or is missing.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

POLICY = ("--model.path", "{sft}/model")
SHORT_DPO = ("world-dpo", *POLICY, "--steps", "24", "--evaluate-every", "12")
RUNS: dict[str, tuple[str, ...]] = {
    "sft": ("sft", "world-sft", "--epochs", "1"),
    "reward": ("reward", "world-reward", "--epochs", "1"),
    "dpo": ("dpo", *SHORT_DPO),
    "dpo-ema": ("dpo", *SHORT_DPO, "--reference.kind", "ema", "--reference.rate", "0.1"),
    "dpo-lora": ("dpo", *SHORT_DPO, "--model.lora.r", "8", "--lr", "1e-3"),
    "pairs": (
        "pairs", *POLICY, "--scorer", "gold", "--prompts", "400", "--samples", "4", "--max-new-tokens", "40",
        "--rounds", "1", "--dpo.lr", "1e-4", "--dpo.evaluation.max-new-tokens", "40", "--dpo.require", "any",
    ),
}  # fmt: skip
"""The arguments of each run; `{sft}` is the directory of the first one."""

OLDER = {"--reference.": "--anchor."}
"""How an option begins in versions that do not know its present name."""
RENAMED: dict[str, str] = {}
"""Old key of metrics.jsonl, samples.jsonl or receipt.json to its new name."""
TIMES = frozenset(
    {"seconds", "step_seconds", "rollout_seconds", "sampling", "scoring", "tokens_per_second", "peak_gb", "time"}
)
HASHES = frozenset({"generator"})
"""Hashes over the names of parameters, which changed with an attribute: `policy.tree.module` is now
`policy.packed.model`."""


def record(out: Path) -> None:
    """Run everything in `RUNS` below `out`; a run that is there already is kept."""
    out.mkdir(parents=True, exist_ok=True)
    known_options = subprocess.run(
        [sys.executable, "-m", "treeward", "dpo", "--help"], check=True, capture_output=True, text=True
    ).stdout
    for name, arguments in RUNS.items():
        if (out / name).exists():
            continue
        command = [argument.format(sft=out / "sft") for argument in arguments]
        for new, old in OLDER.items():
            if new not in known_options:
                command = [argument.replace(new, old, 1) for argument in command]
        print(f"{name}: treeward {' '.join(command)}", flush=True)
        environment = {**os.environ, "TREEWARD_CACHE": str(out.absolute() / "cache")}
        done = subprocess.run(
            [sys.executable, "-m", "treeward", *command, "--out", str(out / name)],
            check=False, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode not in (0, 3):
            sys.exit(f"{name} ended with exit code {done.returncode}:\n{done.stderr}")


def compare(before: Path, after: Path) -> int:
    """Print one line a file, and the differences; returns how many numbers or texts differ or are missing."""
    different = 0
    for path in sorted(path.relative_to(before) for path in before.rglob("*.json*")):
        if path.name not in ("metrics.jsonl", "samples.jsonl", "receipt.json") or "cache" in path.parts:
            continue
        if not (after / path).exists():
            print(f"{path}: missing")
            different += 1
            continue
        old, new = (dict(values(read(side / path), path.name)) for side in (before, after))
        changed = [key for key in old if old[key] != new.get(key)]
        now_run = [key for key in changed if key.startswith("check ") and old[key] is None and new.get(key) is True]
        wrong = [key for key in changed if key not in now_run]
        added = sorted({key.rpartition("/")[2] for key in new.keys() - old.keys()})
        remarks = (f"; new: {', '.join(added)}" if added else "") + (
            f"; skipped before, passed now: {', '.join(now_run)}" if now_run else ""
        )
        print(f"{path}: {len(old)} values, {len(wrong)} differ{remarks}")
        for key in wrong[:10]:
            print(f"    {key}: {old[key]!r} before, {new.get(key, 'missing')!r} after")
        different += len(wrong)
    return different


def read(path: Path) -> Any:
    """The rows of a JSON lines file, or the value of a JSON file."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)


def values(content: Any, name: str) -> Iterator[tuple[str, Any]]:
    """What must stay equal of a file, as (place, value)."""
    if name != "receipt.json":
        yield from flat(content)
        return
    yield "verdict", content["verdict"]
    compared = {content["metric"]: content, **content["metrics"]}
    for metric, facts in compared.items():
        for side in ("before", "after", "difference"):
            yield from flat(facts[side], f"{metric}/{side}")
    counts: Counter[str] = Counter()
    for check in content["checks"]:
        counts[check["id"]] += 1
        yield f"check {check['id']} no. {counts[check['id']]}", check["passed"]


def flat(content: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every number and text of nested mappings and lists with its place; times are left out."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            if key not in TIMES | HASHES:
                yield from flat(value, f"{place}/{RENAMED.get(key, key)}")
    elif isinstance(content, list):
        for number, value in enumerate(content):
            yield from flat(value, f"{place}/{number}")
    else:
        yield place, content


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("record").add_argument("out", type=Path)
    two = commands.add_parser("compare")
    two.add_argument("before", type=Path)
    two.add_argument("after", type=Path)
    chosen = parser.parse_args()
    if chosen.command == "record":
        record(chosen.out)
        return 0
    different = compare(chosen.before, chosen.after)
    print("equal" if not different else f"{different} values differ")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
