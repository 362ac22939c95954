"""`treeward evaluate --model.path DIR [--start DIR] [--data.source ...] [--evaluation.scorer gold]`."""

from collections.abc import Sequence

from treeward.cli.parse import parse
from treeward.cli.training import field_lines, interval, overridden
from treeward.evaluation.tables import known, metric
from treeward.jobs import settings
from treeward.jobs.evaluate import EvaluateRun, evaluate


def run(verb: str, arguments: Sequence[str]) -> int:
    """Print every metric with its interval and n."""
    words = parse(arguments, ("help",))
    if "help" in words.flags:
        print("\n".join([str(EvaluateRun.__doc__), "", *field_lines(EvaluateRun)]))
        return 0
    for name, facts in evaluate(settings.build(EvaluateRun, overridden(words))).items():
        print(f"{name:<10} {interval(facts)}, n={facts['n']}; {meaning(name)}")
        if "difference" in facts:
            gap = facts["difference"]
            least = f"least visible {gap['minimum_detectable']:.2g}"
            print(f"{'':<10} against the other {interval(gap)}, p={gap['p']:.2g} ({gap['test']}), {least}")
    return 0


def meaning(name: str) -> str:
    """What a figure is, in words."""
    return metric(name).meaning if known(name) else "expected calibration error, ten bins of equal mass"
