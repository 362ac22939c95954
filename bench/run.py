"""Benches side by side with public peers, in one go: `python bench/run.py [--only dpo]`, or `make bench`.

Every measurement is a process of its own, so that its peak memory is its own. This process imports neither torch nor
transformers: what it held itself would count in its children's peaks (Linux hands ru_maxrss on through exec).
"""

import argparse
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import dpo
import peer
import reinforce
import reward
import sample
import score
import sweep
import warp
from records import Record, Setting, Unequal, write

ROOT = Path(__file__).resolve().parent.parent

BENCHES: dict[str, Callable[[Setting], list[Record]]] = {
    "dpo": dpo.bench, "reward": reward.bench, "score": score.bench, "sample": sample.bench,
    "sample-uneven": sample.uneven, "reinforce": reinforce.bench, "sweep": sweep.bench,
    "warp": warp.bench,
}  # fmt: skip
"""What each bench measures and prints; a new bench is one file and one entry here."""


def machine() -> str:
    """The processor, its cores and the interpreter."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    return f"{cpu}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=sorted(BENCHES), help="run this bench alone")
    parser.add_argument("--pairs", type=int, default=64, help="pairs to train on; 64 is the bench, fewer a trial")
    parser.add_argument("--precision", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--threads", type=int, default=2, help="torch's threads, on both sides")
    asked = parser.parse_args()
    if asked.pairs < 3:
        parser.error(f"--pairs is {asked.pairs}; the three-step check needs at least 3")
    if asked.threads < 1:
        parser.error(f"--threads is {asked.threads}; it must be at least 1")
    return asked


def main() -> int:
    """Run what was asked for; 1 where a peer's numbers are not equal, 0 also where there is no data to run on."""
    asked = arguments()
    data = Path(os.environ.get("TREEWARD_DATA") or ROOT / "../shared/data").resolve()
    if not data.is_dir():
        print(f"bench skipped: there is no data at {data}; set TREEWARD_DATA to a copy of shared/data")
        return 0
    python = peer.ready(ROOT)
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {machine()}, {asked.threads} threads")
    print(", ".join(f"{name} {version(name)}" for name in ("treeward", "torch", "transformers")), end=", ")
    print(f"peer: trl {peer.VERSION}\n")
    for name in [asked.only] if asked.only else sorted(BENCHES):
        with tempfile.TemporaryDirectory(prefix="treeward-bench-") as work:
            setting = Setting(
                data=data, work=Path(work), ours=Path(sys.executable), peer=python,
                pairs=asked.pairs, precisions=asked.precision, threads=asked.threads,
            )  # fmt: skip
            try:
                found = BENCHES[name](setting)
            except Unequal as difference:
                print(f"{name}: {difference}; nothing was timed")
                return 1
        write(ROOT / "bench" / "latest.json", name, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
