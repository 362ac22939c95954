"""A sweep: one training command over the product of some fields' values.

Each point is an ordinary run in its own directory. The reference's log-probabilities are computed for the first run and
read from the store by the others. If the command trains policies, the sweep ends with one frontier page.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from treeward.errors import ChecksFailed, UserError
from treeward.methods import find
from treeward.report.frontier import every, write_frontier
from treeward.runner import settings
from treeward.runner.run import Finished, run
from treeward.runs.directory import free_path

log = logging.getLogger(__name__)

Axis = tuple[str, tuple[str, ...]]
"""A dotted key and the texts of its values."""


@dataclass(frozen=True)
class Swept:
    """The sweep's directory; the runs by point; what stopped the points that did not run; the frontier page, or the
    reason why there is none although runs have a score and a KL.
    """

    path: Path
    runs: dict[str, Finished]
    failed: dict[str, str]
    frontier: Path | None
    no_frontier: str = ""

    @property
    def exit_code(self) -> int:
        """The worst of the runs'; 2 if a point did not run."""
        return 2 if self.failed else max(finished.exit_code for finished in self.runs.values())


def axis(text: str) -> Axis:
    """The axis of `KEY=V1,V2,...`. A comma inside brackets is part of a value, as in [a,b].

    Raises:
        UserError: there is no key or no value.
    """
    key, equals, values = text.partition("=")
    texts = tuple(value.strip() for value in _split(values) if value.strip())
    if not key or not equals or not texts:
        raise UserError(f"--sweep {text!r} is not KEY=VALUE,VALUE,...; for example --sweep loss.beta=0.05,0.1,0.5")
    return key.strip(), texts


def _split(values: str) -> list[str]:
    """Split at commas outside brackets."""
    parts, depth = [""], 0
    for character in values:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def points(axes: Sequence[Axis]) -> dict[str, list[tuple[str, str]]]:
    """The product of the axes: names such as `loss.beta=0.1,seed=0` to their overrides, in order.

    A name is also a directory, so slashes in a value become underscores.

    Raises:
        UserError: two points would have the same name.
    """
    by_name: dict[str, list[tuple[str, str]]] = {}
    for overrides in product(*([(key, value) for value in values] for key, values in axes)):
        name = ",".join(f"{key}={value}" for key, value in overrides).replace("/", "_")
        if name in by_name:
            raise UserError(f"--sweep has two points {name!r}; give each value once")
        by_name[name] = list(overrides)
    return by_name


def sweep(verb: str, base: Mapping[str, Any], axes: Sequence[Axis]) -> Swept:
    """Run every point. `base` is the command's mapping without the axes.

    Raises:
        UserError: a point's configuration is wrong (checked before the first run), the directory exists, or the first
            point cannot be run. Later points that cannot be run are in `failed`.
    """
    path = free_path(f"{base.get('name') or verb}-sweep", base.get("out"))
    method = find(verb)
    configs = {}
    for name, overrides in points(axes).items():
        values = dict(base)
        for key, text in overrides:
            values = settings.merge(values, settings.override(key, text))
        configs[name] = settings.build(method.Config, values | {"out": str(path / name)})
        if getattr(configs[name], "members", 1) > 1:
            raise UserError("--sweep runs single models: leave members at 1")
    finished: dict[str, Finished] = {}
    failed: dict[str, str] = {}
    for number, (name, config) in enumerate(configs.items(), 1):
        log.info("\n%s (%d of %d)", name, number, len(configs))
        try:
            finished[name] = run(config, method)
        except (ChecksFailed, UserError) as problem:
            if isinstance(problem, UserError) and number == 1:
                raise
            failed[name] = str(problem)
            log.error("%s was not trained: %s", name, failed[name])
    scored = [point.path for point in finished.values() if {"score", "kl"} <= every(point.receipt).keys()]
    if not scored:
        return Swept(path, finished, failed, None)
    try:
        return Swept(path, finished, failed, write_frontier(scored, path / "frontier.html"))
    except UserError as problem:
        return Swept(path, finished, failed, None, str(problem))
