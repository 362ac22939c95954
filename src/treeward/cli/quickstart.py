"""`treeward quickstart [--out DIR]`."""

import time
from collections.abc import Sequence

from treeward.cli.parse import parse
from treeward.errors import UserError
from treeward.runner.quickstart import quickstart
from treeward.stats.formatting import interval


def run(verb: str, arguments: Sequence[str]) -> int:
    """Run the three stages and say what was learned."""
    words = parse(arguments, ("help",))
    if "help" in words.flags:
        print("treeward quickstart [--out DIR]: sft, reward model and DPO on the embedded world, and one page.")
        return 0
    unknown = [key for key, _ in words.options if key != "out"] + list(words.places)
    if unknown:
        raise UserError(f"quickstart takes --out DIR alone, not {unknown[0]!r}")
    clock = time.monotonic()
    done = quickstart(dict(words.options).get("out"))
    print()
    for name, stage in done.stages.items():
        facts = stage.receipt
        start = "0.5 by construction" if facts["before"]["constant"] else interval(facts["before"])
        change = f"{facts['metric']} {start} -> {interval(facts['after'])}, n={facts['after']['n']}"
        print(f"{name:<7} {facts['verdict']:<22} {change}")
    print(f"\n{time.monotonic() - clock:.0f} s; run {done.path}\nreport  {done.page}")
    return max(stage.exit_code for stage in done.stages.values())
