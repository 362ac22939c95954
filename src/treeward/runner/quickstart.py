"""The quickstart: the whole path on the embedded world, without network, in a few minutes on two cores.

SFT on the world's texts, a reward model and DPO on its noisy pairs, REINFORCE against the reward model. The policies
are scored by the gold score, which no training used. Then one page, which ends with their frontier. Each stage is an
ordinary run directory.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treeward.methods import find
from treeward.report.page import write_page
from treeward.runner import settings
from treeward.runner.run import Finished, run
from treeward.runs.directory import free_path

log = logging.getLogger(__name__)

STAGES = {
    "sft": "learn the grammar of the reviews",
    "reward": "a reward model from noisy pairs",
    "dpo": "the policy from the same pairs, scored by the gold score",
    "reinforce": "the policy against the reward model, scored by the gold score",
}


@dataclass(frozen=True)
class Quickstart:
    """The directory, the page in it, and the stages in order."""

    path: Path
    page: Path
    stages: dict[str, Finished]


def quickstart(out: str | None = None, overrides: dict[str, dict[str, Any]] | None = None) -> Quickstart:
    """Run the four stages. `overrides` changes values of a stage's recipe (for short test runs).

    Raises:
        UserError: `out` exists or cannot be written.
    """
    path = free_path("quickstart", out)
    path.mkdir(parents=True)
    stages: dict[str, Finished] = {}
    for number, (verb, meaning) in enumerate(STAGES.items(), 1):
        log.info("\n%d/%d %s: %s", number, len(STAGES), verb, meaning)
        values = settings.recipe(f"world-{verb}")
        del values["command"]
        values = settings.merge(values, (overrides or {}).get(verb, {}))
        values |= {"out": str(path / verb), "require": "any"}
        if verb in ("dpo", "reinforce"):
            values = settings.merge(values, {"model": {"path": str(path / "sft" / "model")}})
        if verb == "reinforce":
            against = {"reward": str(path / "reward"), "steps": 120, "evaluate_every": 60}
            values = settings.merge(values, against | {"evaluation": {"scorer": "gold"}})
        method = find(verb)
        stages[verb] = run(settings.build(method.Config, values), method)
    page = write_page(path, [stage.path for stage in stages.values()], "Quickstart: film reviews with a known taste")
    return Quickstart(path, page, stages)
