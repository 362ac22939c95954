"""`treeward warp [RECIPE] --model.path POLICY --reward SCORER [--iterations I] [--members M] [--key value ...]`."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import transformers
import yaml

from treeward.cli.parse import overridden, parse, recipe_of, with_model
from treeward.cli.training import show
from treeward.runner import settings
from treeward.runner.run import Finished
from treeward.runner.warp import MemberFailed, config_of, warp
from treeward.stats.formatting import interval


def run(verb: str, arguments: Sequence[str]) -> int:
    """Run the series; returns the exit code."""
    transformers.utils.logging.disable_progress_bar()
    words = parse(arguments, ("print-config", "json", "allow-code"))
    values = with_model(verb, overridden(words, recipe_of(verb, words)))
    config = settings.build(config_of(str(values.get("method", "reinforce"))), values)
    if "print-config" in words.flags:
        print(yaml.safe_dump({"command": verb, **settings.dump(config)}, sort_keys=False), end="")
        return 0
    return finished(config, "json" in words.flags)


def finished(config: Any, as_json: bool) -> int:
    """Run or resume the series and print its end; returns the exit code."""
    try:
        ended = warp(config)
    except MemberFailed as problem:
        print(f"treeward: {problem}", file=sys.stderr)
        return problem.exit_code
    if not as_json:
        show_front(ended)
    return show(ended, as_json)


def show_front(ended: Finished) -> None:
    """One line for each policy of the front and each member, on the test prompts; then remarks and the choice."""
    facts = ended.receipt["warp"]
    print("The policy at each share of the way from the start to the last merge, and the last iteration's members:")
    for each in (*facts["front"], *facts["members"]):
        kl = interval(each["test"]["kl"]) if each["share"] != 0 else "0 by construction"
        print(f"{front_name(each):<10} score {interval(each['test']['score'])}, KL {kl}")
    for remark in [*facts["remarks"], *(remark for each in facts["iterations"] for remark in each["remarks"])]:
        print(f"remark     {remark}")
    how = f"by {facts['choose']} on the validation prompts" if "validation" in facts["front"][0] else "as configured"
    print(f"chosen     share {facts['chosen']:g}, {how}")


def front_name(each: Mapping[str, Any]) -> str:
    """A share of the way to the merge, or a member."""
    return str(each["name"]) if each["share"] is None else f"share {each['share']:g}"
