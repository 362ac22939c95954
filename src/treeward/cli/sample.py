"""`treeward sample --model.path DIR [--prompt TEXT] [--samples 4]`: JSONL on stdout."""

import json
from collections.abc import Sequence

from treeward.cli.parse import field_lines, overridden, parse
from treeward.cli.training import only_options, with_model
from treeward.runner import settings
from treeward.runner.budgets import with_budgets
from treeward.runner.sample import SampleRun, sample


def run(verb: str, arguments: Sequence[str]) -> int:
    """Print one JSON line a sample."""
    words = parse(arguments, ("help",))
    if "help" in words.flags:
        print("\n".join([str(SampleRun.__doc__), "", *field_lines(SampleRun)]))
        return 0
    for row in sample(settings.build(SampleRun, with_budgets(with_model(verb, overridden(only_options(verb, words)))))):
        print(json.dumps(row, ensure_ascii=False))
    return 0
