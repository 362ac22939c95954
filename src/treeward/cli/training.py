"""`treeward sft | reward | dpo | reinforce [RECIPE] [--key value ...]` and `treeward resume RUN`."""

from collections.abc import Sequence
from typing import Any

import transformers
import yaml

from treeward.cli.parse import Words, config_class, configured, is_method, overridden, parse, recipe_of, with_model
from treeward.cli.show import metric_line, print_json
from treeward.errors import UserError
from treeward.methods import find
from treeward.methods.method import RunConfig
from treeward.methods.reward import RewardRun
from treeward.runner import run as runner
from treeward.runner import settings
from treeward.runner.members import TrainedEnsemble, train_members
from treeward.runner.run import Finished, estimate, set_up, verdict_line
from treeward.runner.sweep import Swept, axis, sweep
from treeward.runs.directory import RunDirectory, free_path
from treeward.stats.formatting import interval, p_value

FLAGS = ("print-config", "dry-run", "allow-code", "json")
RESUME = "usage: treeward resume RUN (the run's own config.yaml counts: an option may repeat it, but change nothing)"


def run(verb: str, arguments: Sequence[str]) -> int:
    """Run one training command; returns the exit code."""
    transformers.utils.logging.disable_progress_bar()
    words = parse(arguments, FLAGS)
    if verb == "train":
        verb, words = method_of(words)
    as_json = "json" in words.flags
    if verb == "resume":
        return resume(words)
    options = dict(words.options)
    if "resume" in options:
        return resume(Words((options["resume"],), tuple(o for o in words.options if o[0] != "resume"), words.flags))
    if "seeds" in options:
        words = with_seeds(verb, words)
        options = dict(words.options)
    if "sweep" in options:
        return show_sweep(run_sweep(verb, words), as_json)
    config: RunConfig = configured(verb, words)
    if "print-config" in words.flags:
        values = {"command": verb, **settings.dump(config)}
        if as_json:
            print_json(values)
        else:
            print(yaml.safe_dump(values, sort_keys=False), end="")
        return 0
    free_path(config.name or verb, config.out)
    if "dry-run" in words.flags:
        return dry_run(verb, config, as_json)
    if isinstance(config, RewardRun) and config.members > 1:
        return show_members(train_members(config), as_json)
    return show(runner.run(config, find(verb)), as_json)


def method_of(words: Words) -> tuple[str, Words]:
    """The method of `treeward train --method NAME`, and the other words.

    Raises:
        UserError: no method is named.
    """
    options = dict(words.options)
    if "method" not in options:
        raise UserError("method is not given: name one with --method, such as dpo or FILE.py:NAME")
    rest = tuple(option for option in words.options if option[0] != "method")
    return options["method"], Words(words.places, rest, words.flags)


def with_seeds(verb: str, words: Words) -> Words:
    """The words with `--seeds N` as a sweep over N seeds, from the configured one on.

    Raises:
        UserError: N is not a whole number from 2, or the seed is swept too.
    """
    options = dict(words.options)
    if not options["seeds"].isdecimal() or int(options["seeds"]) < 2:
        raise UserError(f"--seeds is {options['seeds']!r}; it is a number of seeds from 2, such as --seeds 8")
    axes = [axis(text) for key, text in words.options if key == "sweep"]
    if any(key == "seed" for key, _ in axes):
        raise UserError("--seeds and --sweep seed=... both name seeds; leave one out")
    first = str(options.get("seed", recipe_of(verb, words).get("seed", 0)))
    if not first.isdecimal():
        raise UserError(f"--seed is {first!r}; it is the first of the seeds, a whole number from 0")
    seeds = ",".join(str(int(first) + n) for n in range(int(options["seeds"])))
    rest = [option for option in words.options if option[0] not in ("seeds", "seed")]
    return Words(words.places, (*rest, ("sweep", f"seed={seeds}")), words.flags)


def run_sweep(verb: str, words: Words) -> Swept:
    """Train at every point of the `--sweep KEY=V1,V2,...` options.

    Raises:
        UserError: an axis or a point's configuration is wrong, or a flag only makes sense for one run.
    """
    single = words.flags - {"allow-code", "json"}
    if single:
        raise UserError(f"--sweep trains every point: leave out --{min(single)}, or the sweep")
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
    """Continue a run from its last checkpoint with its own configuration.

    Raises:
        UserError: there is no such run, it has ended, or an option would change its configuration.
    """
    if len(words.places) != 1 or words.flags - {"allow-code", "json"}:
        raise UserError(RESUME)
    place = words.places[0]
    directory = RunDirectory.open(place)
    if (directory.path / "receipt.json").exists():
        raise UserError(f"{place!r} has ended: it has a receipt.json")
    values = settings.read_yaml(directory.path / "config.yaml", f"{str(directory.path / 'config.yaml')!r}")
    verb = str(values.pop("command", None))
    if verb == "warp":
        from treeward.cli import warp
        from treeward.runner.warp import config_of

        values = overridden(words, values) | {"out": place}
        return warp.finished(settings.build(config_of(str(values["method"])), values), "json" in words.flags)
    if not is_method(verb):
        ended = (directory.path / "report.json").exists()
        fix = "has ended" if ended else f"continues when the same command is given again with --out {place}"
        raise UserError(f"{place!r} is a run of `treeward {verb}`, not of a training command; it {fix}")
    config = settings.build(config_class(verb), values)
    if settings.build(config_class(verb), overridden(words, values)) != config:
        raise UserError(RESUME)
    return show(runner.run(config, find(verb), resume=directory), "json" in words.flags)


def dry_run(verb: str, config: RunConfig, as_json: bool) -> int:
    """Everything up to the first step: the checks, the data, and what the run would cost."""
    setup = set_up(config, find(verb))
    cost = estimate(setup)
    if as_json:
        checks = [check.facts() for check in setup.checks]
        print_json({"checks": checks, "data": str(setup.data.account), "estimate": cost})
        return 0
    for check in setup.checks:
        print(check)
    print(f"data: {setup.data.account}\nestimate: {cost}")
    return 0


def show(finished: Finished, as_json: bool) -> int:
    """The end of a run: its metrics, its verdict, and where everything is; as JSON its receipt with `path`."""
    receipt = finished.receipt
    if as_json:
        print_json({"path": str(finished.path), **receipt})
        return finished.exit_code
    for name, facts in {receipt["metric"]: receipt, **receipt["metrics"]}.items():
        print(metric_line(name, facts))
    failed = [check for check in receipt["checks"] if check["passed"] is False]
    accepted = f", {len(receipt['accepted'])} accepted: {', '.join(receipt['accepted'])}" if receipt["accepted"] else ""
    if receipt["data"]["verdict"]["part"] != "test":
        print(f"held out   {verdict_line(receipt['data']['verdict'])}")
    moved = f"weights moved by {receipt['movement']['relative_update']:.3g} of their norm"
    print(f"checks     {len(receipt['checks'])}, failed {len(failed)}{accepted}; {moved}")
    if "rollout_seconds" in receipt:
        split = {**receipt["rollout_seconds"], "gradient": receipt["step_seconds"]}
        shares = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in split.items())
        print(f"time       {shares}, of {receipt['seconds']:.3g} s in all; peak memory {receipt['peak_gb']:.2g} GB")
    print(f"verdict    {receipt['verdict']}: {receipt['reason']}")
    print(f"run        {finished.path}\nreport     {finished.path / 'report.html'}")
    return finished.exit_code


def show_sweep(swept: Swept, as_json: bool = False) -> int:
    """One line a point, and where the frontier is; as JSON the receipts by point."""
    if as_json:
        print_json(_sweep_facts(swept))
        return swept.exit_code
    for name, finished in swept.runs.items():
        receipt = finished.receipt
        change = interval(receipt["difference"], sign=True)
        kl = f", KL {interval(receipt['metrics']['kl']['after'])}" if "kl" in receipt["metrics"] else ""
        after = f"{receipt['metric']} {interval(receipt['after'])}, n={receipt['after']['n']}"
        print(f"{name}: {after}; change {change}{kl}; {receipt['verdict']}")
    for name, reason in swept.failed.items():
        print(f"{name}: not trained: {reason}")
    if len(swept.runs) > 1:
        print(f"choice     {selection_bias(len(swept.runs), 'points')}")
    print(f"sweep      {swept.path}")
    if swept.frontier or swept.no_frontier:
        print(f"frontier   {swept.frontier or f'none: {swept.no_frontier}'}")
    return swept.exit_code


def _sweep_facts(swept: Swept) -> dict[str, Any]:
    return {
        "path": str(swept.path),
        "runs": {name: {"path": str(run.path), **run.receipt} for name, run in swept.runs.items()},
        "failed": swept.failed,
        "frontier": str(swept.frontier) if swept.frontier else None,
        "no_frontier": swept.no_frontier,
    }


def selection_bias(count: int, what: str) -> str:
    """A warning for whoever picks the best of several models by figures on the same held-out groups."""
    return (
        f"{count} {what} on the same held-out groups: the best by these figures was chosen on them and looks better "
        "than it is; measure it on other data before quoting it"
    )


def show_members(ensemble: TrainedEnsemble, as_json: bool) -> int:
    """Each way of joining the members, with its accuracy and its gain over the first of them."""
    if as_json:
        members = [{"path": str(member.path), **member.receipt} for member in ensemble.members]
        print_json({"path": str(ensemble.path), "ways": ensemble.combinations, "members": members})
        return ensemble.exit_code
    for name, facts in ensemble.combinations.items():
        accuracy, gain = facts["accuracy"], facts["against_member_1"]
        difference = f"against member 1 {interval(gain, sign=True)}, {p_value(gain['p'], accuracy['n'])}"
        print(f"{name:<16} accuracy {interval(accuracy)}, n={accuracy['n']}; {difference}")
    print(f"choice     {selection_bias(len(ensemble.combinations), 'ways')}")
    print(f"run        {ensemble.path}\nmodel      {ensemble.path / 'model'} (WARM)")
    return ensemble.exit_code
