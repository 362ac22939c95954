"""`treeward evaluate --model.path DIR [--start DIR] [--data.source ...] [--evaluation.scorer gold]`."""

from collections.abc import Sequence

from treeward.cli.parse import parse
from treeward.cli.training import field_lines, interval, overridden
from treeward.evaluation.tables import METRICS
from treeward.jobs import settings
from treeward.jobs.evaluate import EvaluateRun, evaluate


def run(verb: str, arguments: Sequence[str]) -> int:
    """Print every metric with its interval and n."""
    words = parse(arguments, ("help",))
    if "help" in words.flags:
        print("\n".join([str(EvaluateRun.__doc__), "", *field_lines(EvaluateRun)]))
        return 0
    for name, facts in evaluate(settings.build(EvaluateRun, overridden(words))).items():
        print(f"{name:<10} {interval(facts)}, n={facts['n']}; {METRICS[name].meaning}")
    return 0
