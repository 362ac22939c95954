"""`treeward score --model.path DIR --data FILE [--data.columns MAPPING] [--out scores.jsonl] [--against FILE]`."""

from collections.abc import Sequence
from dataclasses import asdict

from treeward.cli.parse import parse, with_trained_budgets, without_recipe
from treeward.cli.show import print_json
from treeward.runner.score import score
from treeward.stats.formatting import interval


def run(verb: str, arguments: Sequence[str]) -> int:
    """Print how many responses were scored, how fast, and the accuracy where the data has the better response."""
    words = parse(arguments, ("json",))
    config = with_trained_budgets(verb, without_recipe(verb, words))
    scored = score(config)
    if "json" in words.flags:
        print_json({"out": config.out, **asdict(scored)})
        return 0
    rate = f", {scored.fresh / scored.seconds:.1f} responses/s" if scored.fresh else ""
    print(f"{scored.rows} rows, {scored.responses} responses{rate}")
    if scored.accuracy is not None:
        print(f"accuracy   {interval(asdict(scored.accuracy))}, n={scored.accuracy.n}, ties half")
    print(config.out)
    return 0
