"""`treeward quickstart [--out DIR]`."""

import time
from collections.abc import Sequence

from treeward.cli.parse import parse
from treeward.cli.show import before_and_after
from treeward.errors import UserError
from treeward.runner.quickstart import quickstart


def run(verb: str, arguments: Sequence[str]) -> int:
    """Run the four stages and print the verdict and main metric of each."""
    words = parse(arguments, ())
    unknown = [key for key, _ in words.options if key != "out"] + list(words.places)
    if unknown:
        raise UserError(f"quickstart takes only --out DIR, not {unknown[0]!r}")
    started = time.monotonic()
    result = quickstart(dict(words.options).get("out"))
    print()
    for name, stage in result.stages.items():
        receipt = stage.receipt
        change = f"{receipt['metric']} {before_and_after(receipt)}, n={receipt['after']['n']}"
        print(f"{name:<9} {receipt['verdict']:<22} {change}")
    print(f"\n{time.monotonic() - started:.0f} s; run {result.path}\nreport  {result.page}")
    return max(stage.exit_code for stage in result.stages.values())
