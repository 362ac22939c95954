"""How long pairs take from a file to token trees on disk: `python bench/prepare.py [--pairs 100000] [--processes 2]`.

The file repeats helpful-base, each prompt with a number of its own; the tokenizer is GPT-2's. There is no
peer: it prints the seconds, and the peak memory of this process and of its largest worker.
"""

import argparse
import gzip
import json
import os
import resource
import tempfile
import threading
import time
from itertools import cycle, islice
from pathlib import Path

from pairs import TOKENIZER, gpt2_tokenizer
from treeward.data.prepare import DataConfig, prepare_to

DATA = Path(os.environ.get("TREEWARD_DATA") or Path(__file__).resolve().parent.parent / "../shared/data").resolve()
HUMAN = "\n\nHuman:"


def numbered(line: str, number: int) -> str:
    """The pair with a number in its prompt, so that no two prompts are equal."""
    sides = {name: text.replace(HUMAN, f"{HUMAN} ({number})", 1) for name, text in json.loads(line).items()}
    return json.dumps(sides) + "\n"


def watch_memory(kilobytes: list[int], stop: threading.Event) -> None:
    """Record this process's anonymous memory (mapped files not included) ten times a second."""
    while not stop.wait(0.1):
        lines = Path("/proc/self/status").read_text().splitlines()
        kilobytes.append(next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")))


def main() -> None:
    """Write the file, prepare it, print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.jsonl"
        with (
            gzip.open(DATA / "hh-rlhf/helpful-base/test.jsonl.gz", "rt", encoding="utf-8") as lines,
            file.open("w") as out,
        ):
            for number, line in enumerate(islice(cycle(list(lines)), options.pairs)):
                out.write(numbered(line, number))
        kilobytes: list[int] = []
        stop = threading.Event()
        watch = threading.Thread(target=watch_memory, args=(kilobytes, stop))
        watch.start()
        clock = time.perf_counter()
        config = DataConfig(source=str(file))
        account = prepare_to(Path(folder) / "kept", config, gpt2_tokenizer(DATA), "pairs", options.processes)
        seconds = time.perf_counter() - clock
        stop.set()
        watch.join()
        peak, worker = (resource.getrusage(w).ru_maxrss / 1e6 for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        print(account)
        print(
            f"{options.processes} processes: {seconds:.1f} s; peak {peak:.2f} GB, {max(kilobytes) / 1e6:.2f} GB of it "
            f"anonymous; largest worker {worker:.2f} GB ({TOKENIZER})"
        )


if __name__ == "__main__":
    main()
