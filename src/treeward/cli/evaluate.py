"""`treeward evaluate --model.path DIR [--start DIR] [--data.source ...] [--evaluation.scorer gold]`."""

from collections.abc import Mapping, Sequence
from typing import Any

from treeward.cli.parse import field_lines, overridden, parse
from treeward.cli.training import only_options, with_model
from treeward.runner import settings
from treeward.runner.budgets import with_budgets
from treeward.runner.evaluate import EvaluateRun, evaluate
from treeward.stats.formatting import interval, meaning, p_value


def run(verb: str, arguments: Sequence[str]) -> int:
    """Print every metric with its interval and n and, with a start, what else is said of the two."""
    words = parse(arguments, ("help",))
    if "help" in words.flags:
        print("\n".join([str(EvaluateRun.__doc__), "", *field_lines(EvaluateRun)]))
        return 0
    done = evaluate(settings.build(EvaluateRun, with_budgets(with_model(verb, overridden(only_options(verb, words))))))
    for name, facts in done.figures.items():
        if name == "ece":
            print(f"{name:<10} {calibration_error(facts)}")
            continue
        print(f"{name:<10} {interval(facts)}, n={facts['n']}; {meaning(name)}")
        if "difference" in facts:
            gap = facts["difference"]
            least = gap["minimum_detectable"]
            least = f"least visible {'unknown' if least is None else f'{least:.2g}'}"
            told = f"{interval(gap, sign=True)}, {p_value(gap['p'], facts['n'])} ({gap['test']}), {least}"
            print(f"{'':<10} against the other {told}")
    print("\n".join(summary(done.against)), end="\n" if done.against else "")
    for check in done.checks:
        print(check)
    return done.exit_code


def summary(against: Mapping[str, Any]) -> list[str]:
    """Win rates, best of n, diversity and the start against itself, a line each, where they were measured."""
    found = [f"wins by {name}: {interval(facts)} of n={facts['n']} prompts" for name, facts in
             against.get("win_rate", {}).items()]  # fmt: skip
    best = against.get("best_of_n")
    if best:
        last = best["curve"][-1]
        found.append(f"best of {last['n']} of the start: score {interval(last['score'])}, n={last['score']['n']}")
        at = best.get("at_equal_kl")
        if at and at["above"]:
            found.append(f"above best of n at the same KL: {interval(at['above'])}, n={at['n']}")
    diversity = against.get("diversity", {})
    found += [
        f"{name} {interval(facts['before'])} -> {interval(facts['after'])}, change {interval(facts['difference'])}, "
        f"n={diversity['n']}" for name, facts in diversity.items() if isinstance(facts, Mapping)
    ]  # fmt: skip
    for name, facts in against.get("aa", {}).items():
        covers = "covers" if facts["covers_zero"] else "does not cover"
        found.append(f"the start against itself, {name}: {interval(facts)}, {covers} zero")
    return found


def calibration_error(facts: Mapping[str, Any]) -> str:
    """The expected calibration error beside what exactly right probabilities would show."""
    return (
        f"{facts['value']:.4g} without what chance adds ({facts['plug_in']:.4g} with it; exactly right probabilities "
        f"would show {facts['expected_if_exact']:.4g}), test of calibration {p_value(facts['p'], facts['n'])}, "
        f"n={facts['n']}; "
        "expected calibration error, ten bins of equal mass"
    )
