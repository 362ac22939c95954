"""`treeward score --model.path DIR --data FILE [--data.columns MAPPING] [--out scores.jsonl] [--against FILE]`."""

from collections.abc import Sequence
from dataclasses import asdict

from treeward.cli.parse import field_lines, overridden, parse
from treeward.cli.training import only_options, with_model
from treeward.runner import settings
from treeward.runner.budgets import with_budgets
from treeward.runner.score import ScoreRun, score
from treeward.stats.formatting import interval


def run(verb: str, arguments: Sequence[str]) -> int:
    """Print what was scored, how fast, and the accuracy where it is known."""
    words = parse(arguments, ("help",))
    if "help" in words.flags:
        print("\n".join([str(ScoreRun.__doc__), "", *field_lines(ScoreRun)]))
        return 0
    config = settings.build(ScoreRun, with_budgets(with_model(verb, overridden(only_options(verb, words)))))
    found = score(config)
    rate = f", {found.fresh / found.seconds:.1f} responses/s" if found.fresh else ""
    print(f"{found.rows} rows, {found.responses} responses{rate}")
    if found.accuracy is not None:
        print(f"accuracy   {interval(asdict(found.accuracy))}, n={found.accuracy.n}, ties half")
    print(config.out)
    return 0
