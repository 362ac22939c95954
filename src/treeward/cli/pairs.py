"""`treeward pairs [RECIPE] --model.path POLICY --data.source TEXTS --scorer JUDGE [--select.kind best-worst] ...`."""

from collections.abc import Mapping, Sequence
from typing import Any

import transformers
import yaml

from treeward.cli.parse import field_lines, overridden, parse
from treeward.cli.training import ALLOW, recipe_of, with_model
from treeward.runner import settings
from treeward.runner.budgets import with_budgets
from treeward.runner.pairs import Made, PairsRun, make_pairs
from treeward.runner.rounds import Round, rounds
from treeward.stats.formatting import interval


def run(verb: str, arguments: Sequence[str]) -> int:
    """Make the data, print what it yields, and with --rounds train on it, again and again."""
    transformers.utils.logging.disable_progress_bar()
    words = parse(arguments, ("help", "print-config", "allow-code"))
    if "help" in words.flags:
        names = ", ".join(name for name in settings.recipes() if settings.recipe(name).get("command") == verb)
        print("\n".join([str(PairsRun.__doc__), "", f"recipes: {names}", "", *field_lines(PairsRun), ALLOW]))
        return 0
    config = settings.build(PairsRun, with_budgets(with_model(verb, overridden(words, recipe_of(verb, words)))))
    if "print-config" in words.flags:
        print(yaml.safe_dump({"command": verb, **settings.dump(config)}, sort_keys=False), end="")
        return 0
    if config.rounds:
        return show_rounds(rounds(config))
    show(make_pairs(config))
    return 0


def show(made: Made) -> None:
    """The yield of the samples, and where the data is."""
    report = made.report
    lines: list[tuple[str, str]] = [
        ("prompts", f"{report['prompts']}; left out: {named(report['dropped'])}; cut on the left: "
                    f"{report['prompts_cut']}"),
        ("score", f"{figure(report['score'])}; sd within a prompt {report['sd_within']:.3g}"),
        ("no signal", f"{figure(report['no_signal'])} of the prompts"),
        ("no pair", f"{figure(report['passed_over'])} of the prompts, by min_gap"),
        ("ended", f"{figure(report['ended'])} of the samples"),
        ("gap", f"{figure(report['gap'])}; {report['gap_in_sd']:.3g} sd, where normal scores would give best against "
                f"worst {report['expected_gap_in_sd']:.3g}"),
        ("length", f"chosen longer by {figure(report['length_difference'])} tokens"),
        ("pairs", f"{report['picks']}, judged by {report['scorer']}"),
        ("data", str(made.pairs)),
    ]  # fmt: skip
    for name, text in lines:
        print(f"{name:<10} {text}")


def show_rounds(found: Sequence[Round]) -> int:
    """One line a round: score and, where it is known, KL against the first policy; the last sound model."""
    sound = [each for each in found if each.facts]
    for each in sound:
        score = each.facts["score"]
        kl = f", KL to the first {interval(each.facts['kl'])}" if "kl" in each.facts else ""
        measured = f"score {interval(score)}{kl}, n={score['n']} prompts"
        print(f"round {each.number:<4} {measured}; {each.verdict}")
    for each in found[len(sound) :]:
        print(f"round {each.number:<4} {each.verdict}, so no further one was begun: {each.reason}")
    if sound:
        print(f"model      {sound[-1].path / 'dpo' / 'model'}")
    return max(each.exit_code for each in found)


def figure(facts: Mapping[str, Any] | None) -> str:
    """A value with its interval and n."""
    return "–" if facts is None else f"{interval(dict(facts))}, n={facts['n']}"


def named(counts: Mapping[str, int]) -> str:
    """Counts with their reasons."""
    return ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "none"
