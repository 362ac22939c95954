"""`treeward evaluate --model.path DIR [--start DIR] [--data.source ...] [--evaluation.scorer gold]`."""

from collections.abc import Mapping, Sequence
from typing import Any

from treeward.cli.parse import parse, with_trained_budgets, without_recipe
from treeward.cli.show import print_json
from treeward.runner.evaluate import Evaluated, evaluate
from treeward.stats.formatting import interval, meaning, p_value


def run(verb: str, arguments: Sequence[str]) -> int:
    """Print every metric with its interval and n; with a start model also the comparison of the two."""
    words = parse(arguments, ("json",))
    result = evaluate(with_trained_budgets(verb, without_recipe(verb, words)))
    if "json" in words.flags:
        checks = [check.facts() for check in result.checks]
        print_json({"metrics": result.figures, "against": result.against, "checks": checks})
        return result.exit_code
    for line in (*metric_lines(result), *comparison_lines(result.against), *map(str, result.checks)):
        print(line)
    return result.exit_code


def metric_lines(result: Evaluated) -> list[str]:
    """Every metric with its interval, n and meaning, and its difference to the other model where there is one."""
    lines: list[str] = []
    for name, facts in result.figures.items():
        if name == "ece":
            lines.append(f"{name:<10} {calibration_error(facts)}")
            continue
        lines.append(f"{name:<10} {interval(facts)}, n={facts['n']}; {meaning(name)}")
        if "difference" in facts:
            difference = facts["difference"]
            least = difference["minimum_detectable"]
            test = f"{p_value(difference['p'], facts['n'])} ({difference['test']})"
            detectable = f"minimum detectable {'unknown' if least is None else f'{least:.2g}'}"
            lines.append(f"{'':<10} against the other {interval(difference, sign=True)}, {test}, {detectable}")
    return lines


def comparison_lines(against: Mapping[str, Any]) -> list[str]:
    """Win rates, best-of-n, diversity and the A/A test of the start model, a line each, where they were measured."""
    lines = [
        f"wins by {name}: {interval(facts)} of n={facts['n']} prompts"
        for name, facts in against.get("win_rate", {}).items()
    ]
    best = against.get("best_of_n")
    if best:
        last = best["curve"][-1]
        lines.append(f"best of {last['n']} of the start: score {interval(last['score'])}, n={last['score']['n']}")
        at = best.get("at_equal_kl")
        if at and at["above"]:
            lines.append(f"above best of n at the same KL: {interval(at['above'])}, n={at['n']}")
    diversity = against.get("diversity", {})
    for name, facts in diversity.items():
        if isinstance(facts, Mapping):
            change = f"{interval(facts['before'])} -> {interval(facts['after'])}"
            lines.append(f"{name} {change}, change {interval(facts['difference'])}, n={diversity['n']}")
    for name, facts in against.get("aa", {}).items():
        covers = "covers" if facts["covers_zero"] else "does not cover"
        lines.append(f"the start against itself, {name}: {interval(facts)}, {covers} zero")
    return lines


def calibration_error(facts: Mapping[str, Any]) -> str:
    """The expected calibration error beside the one that exactly right probabilities would show."""
    return (
        f"{facts['value']:.4g} corrected for chance ({facts['plug_in']:.4g} uncorrected; exactly right probabilities "
        f"would show {facts['expected_if_exact']:.4g}), test of calibration {p_value(facts['p'], facts['n'])}, "
        f"n={facts['n']}; "
        "expected calibration error, ten bins of equal mass"
    )
