"""How long 100,000 pairs take from a file to token trees: `python bench/prepare.py [--pairs 100000]`.

The file repeats helpful-base; the tokenizer is GPT-2's. No peer: the figure is seconds and peak memory.
"""

import argparse
import gzip
import os
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

from child import peak_gb
from pairs import TOKENIZER, gpt2_tokenizer
from treeward.data.prepare import DataConfig, prepare

DATA = Path(os.environ.get("TREEWARD_DATA") or Path(__file__).resolve().parent.parent / "../shared/data").resolve()


def main() -> None:
    """Write the file, prepare it, print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=100_000)
    pairs = parser.parse_args().pairs
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pairs.jsonl"
        with gzip.open(DATA / "hh-rlhf/helpful-base/test.jsonl.gz", "rt", encoding="utf-8") as lines:
            file.write_text("".join(islice(cycle(list(lines)), pairs)), encoding="utf-8")
        clock = time.perf_counter()
        found = prepare(DataConfig(source=str(file)), gpt2_tokenizer(DATA), "pairs")
        print(f"{found.account}\n{time.perf_counter() - clock:.1f} s, peak {peak_gb():.2f} GB ({TOKENIZER})")


if __name__ == "__main__":
    main()
