"""`treeward sample --model.path DIR [--prompt TEXT] [--samples 4]`: JSONL on stdout."""

import json
from collections.abc import Sequence

from treeward.cli.parse import parse, with_trained_budgets, without_recipe
from treeward.runner.sample import sample


def run(verb: str, arguments: Sequence[str]) -> int:
    """Print one JSON line a sample."""
    words = parse(arguments, ())
    for row in sample(with_trained_budgets(verb, without_recipe(verb, words))):
        print(json.dumps(row, ensure_ascii=False))
    return 0
