"""`treeward pairs [RECIPE] --model.path POLICY --data.source TEXTS --scorer SCORER [--select.kind best-worst] ...`."""

from collections.abc import Mapping, Sequence
from typing import Any

import transformers
import yaml

from treeward.cli.parse import parse, with_trained_budgets
from treeward.runner import settings
from treeward.runner.pairs import PairsMade, PairsRun, make_pairs
from treeward.runner.rounds import Round, rounds
from treeward.stats.formatting import interval


def run(verb: str, arguments: Sequence[str]) -> int:
    """Make the pairs and print what the samples yield; with --rounds train on them and repeat."""
    transformers.utils.logging.disable_progress_bar()
    words = parse(arguments, ("print-config", "allow-code"))
    config: PairsRun = with_trained_budgets(verb, words)
    if "print-config" in words.flags:
        print(yaml.safe_dump({"command": verb, **settings.dump(config)}, sort_keys=False), end="")
        return 0
    if config.rounds:
        return show_rounds(rounds(config))
    show(make_pairs(config))
    return 0


def show(made: PairsMade) -> None:
    """What the samples yield, and where the pairs are."""
    report = made.report
    expected_gap = f"normal scores would give best against worst {report['expected_gap_in_sd']:.3g}"
    lines = {
        "prompts": f"{report['prompts']}; left out: {reasons(report['dropped'])}; cut on the left: "
        f"{report['prompts_cut']}",
        "score": f"{figure(report['score'])}; sd within a prompt {report['sd_within']:.3g}",
        "no signal": f"{figure(report['no_signal'])} of the prompts",
        "no pair": f"{figure(report['below_min_gap'])} of the prompts, by min_gap",
        "ended": f"{figure(report['ended'])} of the samples",
        "gap": f"{figure(report['gap'])}; {report['gap_in_sd']:.3g} sd, where {expected_gap}",
        "length": f"chosen longer by {figure(report['length_difference'])} tokens",
        "pairs": f"{report['picks']}, ranked by {report['scorer']}",
        "data": str(made.pairs),
    }
    for name, text in lines.items():
        print(f"{name:<10} {text}")


def show_rounds(results: Sequence[Round]) -> int:
    """One line a round: score and, where it was measured, KL to the first policy; then the last sound model."""
    sound = [result for result in results if result.facts]
    for result in sound:
        score = result.facts["score"]
        kl = f", KL to the first {interval(result.facts['kl'])}" if "kl" in result.facts else ""
        print(f"round {result.number:<4} score {interval(score)}{kl}, n={score['n']} prompts; {result.verdict}")
    for result in results[len(sound) :]:
        print(f"round {result.number:<4} {result.verdict}, no further round: {result.reason}")
    if sound:
        print(f"model      {sound[-1].path / 'dpo' / 'model'}")
    return max(result.exit_code for result in results)


def figure(facts: Mapping[str, Any] | None) -> str:
    """A value with its interval and n."""
    return "–" if facts is None else f"{interval(dict(facts))}, n={facts['n']}"


def reasons(counts: Mapping[str, int]) -> str:
    """How many were left out for each reason."""
    return ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "none"
