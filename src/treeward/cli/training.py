"""`treeward sft | reward | dpo [RECIPE] [--key value ...]` and `treeward resume RUN`."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import transformers
import yaml

from treeward.cli.parse import Words, field_lines, overridden, parse
from treeward.data import world
from treeward.errors import UserError
from treeward.runner import settings
from treeward.runner.members import Ensembled, train_members
from treeward.runner.options import RUNS, AnyRun, RewardRun
from treeward.runner.sweep import Swept, axis, sweep
from treeward.runner.train import Finished, estimate, prologue, train, verdict_line
from treeward.runs.directory import RunDirectory, free_path
from treeward.stats.formatting import interval, p_value, value

log = logging.getLogger(__name__)
ALLOW = "  --allow-code                         run the Python files that a recipe or a run directory names"
FLAGS = ("help", "print-config", "dry-run", "allow-code")
RESUME = "usage: treeward resume RUN (the run's own config.yaml stands: an option may repeat it, but change nothing)"


def run(verb: str, arguments: Sequence[str]) -> int:
    """One training command line."""
    transformers.utils.logging.disable_progress_bar()
    words = parse(arguments, FLAGS)
    if "help" in words.flags:
        print(help_text(verb))
        return 0
    if verb == "resume":
        return resume(words)
    given = dict(words.options)
    if "resume" in given:
        return resume(Words((given["resume"],), tuple(o for o in words.options if o[0] != "resume"), words.flags))
    if "sweep" in given:
        return show_sweep(swept(verb, words))
    config = configured(verb, words)
    if "print-config" in words.flags:
        print(yaml.safe_dump({"command": verb, **settings.dump(config)}, sort_keys=False), end="")
        return 0
    free_path(config.name or verb, config.out)
    if "dry-run" in words.flags:
        return dry_run(config)
    if isinstance(config, RewardRun) and config.members > 1:
        return show_members(train_members(config))
    return show(train(config))


def configured(verb: str, words: Words) -> AnyRun:
    """The configuration of a training command: its recipe with the overrides laid on it.

    Raises:
        UserError: the recipe is unknown or of another command, an unknown key or a bad value.
    """
    return settings.build(RUNS[verb], with_model(verb, overridden(words, recipe_of(verb, words))))


def with_model(verb: str, values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The mapping of a command as it stands, where it names a model.

    Without one, training starts from the embedded world's model with random weights where the data is the embedded
    world too, and says so, or where random weights are asked for.

    Raises:
        UserError: no model is named.
    """
    model = values.get("model", {})
    if not isinstance(model, Mapping) or "path" in model:
        return values
    data = values.get("data", {})
    source = str(data.get("source", "world")) if isinstance(data, Mapping) else ""
    if str(model.get("init")) == "random" or (verb in RUNS and world.source(source) is not None):
        log.info("model: the embedded world's, with random weights; name another with --model.path")
        return values
    raise UserError(
        "model.path is not given: name a model with --model.path (a run or model directory, a hub id, or `world` for "
        "the small embedded model with random weights)"
    )


def only_options(verb: str, words: Words) -> Words:
    """The words of a command that takes no recipe.

    Raises:
        UserError: a word stands there that belongs to no option.
    """
    if words.places:
        raise UserError(f"{verb} does not take {words.places[0]!r}: give options, --KEY VALUE")
    return words


def recipe_of(verb: str, words: Words) -> dict[str, Any]:
    """The mapping of the recipe that a command line names, with its name; empty without one.

    Raises:
        UserError: more than one recipe, an unknown one, or one of another command.
    """
    if len(words.places) > 1:
        raise UserError(f"one recipe at most, not {' '.join(words.places)!r}")
    if not words.places:
        return {}
    values = settings.recipe(words.places[0])
    command = values.pop("command", verb)
    if command != verb:
        raise UserError(f"recipe {words.places[0]!r} is for `treeward {command}`, not {verb}")
    values.setdefault("name", words.places[0].rsplit("/", 1)[-1].removesuffix(".yaml"))
    return values


def swept(verb: str, words: Words) -> Swept:
    """Run every point of a command line's `--sweep KEY=V1,V2,...` options.

    Raises:
        UserError: an axis or a point's configuration is wrong, or a flag asks for one run alone.
    """
    single = words.flags - {"allow-code"}
    if single:
        raise UserError(f"--sweep runs every point; leave --{min(single)} away, or the sweep")
    axes = [axis(text) for key, text in words.options if key == "sweep"]
    rest = Words(words.places, tuple(option for option in words.options if option[0] != "sweep"), words.flags)
    base = overridden(rest, recipe_of(verb, rest))
    values = dict(axes)
    if "model.path" not in values:
        for source in values.get("data.source", ()):
            with_model(verb, settings.merge(base, settings.override("data.source", source)))
        base = dict(with_model(verb, base))
    return sweep(verb, base, axes)


def resume(words: Words) -> int:
    """Go on with a run from its last checkpoint; its own configuration stands."""
    if len(words.places) != 1:
        raise UserError(RESUME)
    directory = RunDirectory.open(words.places[0])
    if (directory.path / "receipt.json").exists():
        raise UserError(f"{words.places[0]!r} has ended: its receipt.json is there")
    values = settings.read_yaml(directory.path / "config.yaml", f"{str(directory.path / 'config.yaml')!r}")
    verb = str(values.pop("command", None))
    if verb not in RUNS:
        ended = (directory.path / "report.json").exists()
        mend = "has ended" if ended else f"goes on when the same command is given again with --out {words.places[0]}"
        raise UserError(f"{words.places[0]!r} is of `treeward {verb}`, not of a training command; it {mend}")
    config = settings.build(RUNS[verb], values)
    if settings.build(RUNS[verb], overridden(words, values)) != config:
        raise UserError(RESUME)
    return show(train(config, directory))


def dry_run(config: AnyRun) -> int:
    """Everything up to the first step, and what the run would cost."""
    begun = prologue(config)
    for check in begun.checks:
        print(check)
    print(f"data: {begun.data.account}")
    print(f"estimate: {estimate(config, begun)}")
    return 0


def show(finished: Finished) -> int:
    """The last lines of a run: numbers, verdict, and where everything is."""
    receipt = finished.receipt
    for name, facts in {receipt["metric"]: receipt, **receipt["metrics"]}.items():
        before, after, change = facts["before"], facts["after"], facts["difference"]
        start = f"{value(before)} by construction" if before["constant"] else interval(before)
        told = f"change {interval(change, sign=True)}, {p_value(change['p'], after['n'])}"
        print(f"{name:<10} {start} -> {interval(after)}, n={after['n']}; {told}")
    failed = [check for check in receipt["checks"] if check["passed"] is False]
    accepted = f", {len(receipt['accepted'])} accepted: {', '.join(receipt['accepted'])}" if receipt["accepted"] else ""
    if receipt["data"]["verdict"]["part"] != "test":
        print(f"held out   {verdict_line(receipt['data']['verdict'])}")
    print(f"checks     {len(receipt['checks'])}, failed {len(failed)}{accepted}; weights moved by "
          f"{receipt['movement']['relative_update']:.3g} of their norm")  # fmt: skip
    print(f"verdict    {receipt['verdict']}: {receipt['reason']}")
    print(f"run        {finished.path}\nreport     {finished.path / 'report.html'}")
    return finished.exit_code


def show_sweep(found: Swept) -> int:
    """One line a point, and where the frontier is."""
    for name, finished in found.runs.items():
        receipt = finished.receipt
        change = interval(receipt["difference"], sign=True)
        kl = f", KL {interval(receipt['metrics']['kl']['after'])}" if "kl" in receipt["metrics"] else ""
        after = f"{receipt['metric']} {interval(receipt['after'])}, n={receipt['after']['n']}"
        print(f"{name}: {after}; change {change}{kl}; {receipt['verdict']}")
    for name, reason in found.failed.items():
        print(f"{name}: not trained: {reason}")
    if len(found.runs) > 1:
        print(f"choice     {chosen_on(len(found.runs), 'points')}")
    print(f"sweep      {found.path}")
    if found.frontier or found.no_frontier:
        print(f"frontier   {found.frontier or f'none: {found.no_frontier}'}")
    return found.exit_code


def chosen_on(count: int, what: str) -> str:
    """What figures of several models on the same held-out groups do not say."""
    return (
        f"{count} {what} on the same held-out groups: the best by these figures was chosen on them and looks better "
        "than it is; measure it on other data before quoting it"
    )


def show_members(found: Ensembled) -> int:
    """Each way of joining the members, with its accuracy and its gain on the first of them."""
    for name, facts in found.ways.items():
        accuracy, gain = facts["accuracy"], facts["against_member_1"]
        told = f"against member 1 {interval(gain, sign=True)}, {p_value(gain['p'], accuracy['n'])}"
        print(f"{name:<16} accuracy {interval(accuracy)}, n={accuracy['n']}; {told}")
    print(f"choice     {chosen_on(len(found.ways), 'ways')}")
    print(f"run        {found.path}\nmodel      {found.path / 'model'} (WARM)")
    return found.exit_code


def help_text(verb: str) -> str:
    """Every field of the command with its default and meaning."""
    if verb == "resume":
        return ("treeward resume RUN: go on from the last checkpoint, bit for bit at equal threads and versions.\n"
                f"{ALLOW}")  # fmt: skip
    names = ", ".join(settings.recipes())
    return "\n".join([f"{RUNS[verb].__doc__}", "", f"recipes: {names}", "", *field_lines(RUNS[verb]),
                      "  --sweep KEY=V1,V2,...                every value (or combination) in one go, one frontier",
                      "  --print-config                       show the resolved run and stop",
                      "  --dry-run                            data, checks and an estimate, then stop",
                      ALLOW])  # fmt: skip
