"""A sweep: one training command over the product of some fields' values, in one go.

Each point is an ordinary run in a directory of its own; the reference's log-probabilities are computed for the first
and read by the rest. The sweep ends in one frontier, where the command trains policies.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from treeward.checks.check import ChecksFailed
from treeward.errors import UserError
from treeward.report.frontier import every, write_frontier
from treeward.runner import settings
from treeward.runner.options import RUNS
from treeward.runner.train import Finished, train
from treeward.runs.directory import free_path

log = logging.getLogger(__name__)

Axis = tuple[str, tuple[str, ...]]
"""A dotted key and the texts of its values."""


@dataclass(frozen=True)
class Swept:
    """Where the sweep is; its runs by point; what stopped the points that did not run; the frontier, or why there is
    none, where there are runs with a score and a KL.
    """

    path: Path
    runs: dict[str, Finished]
    failed: dict[str, str]
    frontier: Path | None
    no_frontier: str = ""

    @property
    def exit_code(self) -> int:
        """The worst of the runs'; 2 where a point did not run."""
        return 2 if self.failed else max(finished.exit_code for finished in self.runs.values())


def axis(text: str) -> Axis:
    """The axis that `KEY=V1,V2,...` names; a comma inside brackets belongs to its value, as in [a,b].

    Raises:
        UserError: there is no key or no value.
    """
    key, equals, values = text.partition("=")
    texts = tuple(value.strip() for value in _split(values) if value.strip())
    if not key or not equals or not texts:
        raise UserError(f"--sweep {text!r} is not KEY=VALUE,VALUE,...; for example --sweep loss.beta=0.05,0.1,0.5")
    return key.strip(), texts


def _split(values: str) -> list[str]:
    found, depth = [""], 0
    for sign in values:
        depth += (sign in "[{") - (sign in "]}")
        if sign == "," and depth == 0:
            found.append("")
        else:
            found[-1] += sign
    return found


def points(axes: Sequence[Axis]) -> dict[str, list[tuple[str, str]]]:
    """The product of the axes: a name such as `loss.beta=0.1,seed=0` to its overrides, in order.

    A name is one directory's, so that the slashes of a value stand as underscores in it.

    Raises:
        UserError: two points would have one name.
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for chosen in product(*([(key, value) for value in values] for key, values in axes)):
        name = ",".join(f"{key}={value}" for key, value in chosen).replace("/", "_")
        if name in found:
            raise UserError(f"--sweep has two points {name!r}; give each value once")
        found[name] = list(chosen)
    return found


def sweep(verb: str, base: Mapping[str, Any], axes: Sequence[Axis]) -> Swept:
    """Run every point; `base` is the command's mapping without the axes.

    Raises:
        UserError: a point's configuration is wrong (found out before the first run), the place is taken, or the
            first point cannot be run. A later one that cannot be run stands in `failed`.
    """
    path = free_path(f"{base.get('name') or verb}-sweep", base.get("out"))
    configs = {}
    for name, overrides in points(axes).items():
        values = dict(base)
        for key, text in overrides:
            values = settings.merge(values, settings.override(key, text))
        configs[name] = settings.build(RUNS[verb], values | {"out": str(path / name)})
        if getattr(configs[name], "members", 1) > 1:
            raise UserError("--sweep runs single models: leave members at 1")
    found: dict[str, Finished] = {}
    failed: dict[str, str] = {}
    for number, (name, config) in enumerate(configs.items(), 1):
        log.info("\n%s (%d of %d)", name, number, len(configs))
        try:
            found[name] = train(config)
        except (ChecksFailed, ValueError) as problem:
            if isinstance(problem, ValueError) and number == 1:
                raise
            failed[name] = str(problem)
            log.error("%s was not trained: %s", name, failed[name])
    judged = [finished.path for finished in found.values() if {"score", "kl"} <= every(finished.receipt).keys()]
    if not judged:
        return Swept(path, found, failed, None)
    try:
        return Swept(path, found, failed, write_frontier(judged, path / "frontier.html"))
    except ValueError as problem:
        return Swept(path, found, failed, None, str(problem))
