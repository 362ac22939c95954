"""An ensemble of reward models: M runs from one start with different data orders, then what joining them is worth.

Every member is an ordinary run directory. Their judgements are joined by mean, worst case and mean minus variance, and
their weights by WARM, which becomes the ensemble's `model/`; each is compared with the first member on the same pairs.
"""

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from treeward.evaluation.rewards import paired
from treeward.methods.reward import needs, suited
from treeward.models import ensemble
from treeward.models.artifact import annotate
from treeward.models.reward_model import RewardModel
from treeward.runner.options import RewardRun
from treeward.runner.train import Finished, data_of, train
from treeward.runs.directory import RunDirectory, finite, free_path
from treeward.stats.tables import compare

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ensembled:
    """Where it is, the members' runs, and each way of joining with its accuracy and its gain on the first member."""

    path: Path
    members: list[Finished]
    ways: dict[str, dict[str, Any]]
    exit_code: int


def train_members(config: RewardRun) -> Ensembled:
    """Train `config.members` reward models and join them.

    Raises:
        ChecksFailed: a check before a member's first step failed.
        UserError: the configuration, model or data cannot be used.
    """
    path = free_path(config.name or "reward", config.out)
    start = config.seed if config.model.seed is None else config.model.seed
    finished: list[Finished] = []
    for number in range(config.members):
        log.info("\nmember %d of %d", number + 1, config.members)
        member = replace(
            config, members=1, seed=config.seed + number, model=replace(config.model, seed=start),
            out=str(path / f"member-{number + 1}"),
        )  # fmt: skip
        finished.append(train(member))
    models = [RewardModel.load(str(each.path), device=config.model.device) for each in finished]
    trees = data_of(config, models[0].tokenizer, needs(suited(config.loss, models[0].head))).held_out
    averaged = ensemble.warm(models)
    together = ensemble.Ensemble.standardised(models, trees).scores(trees)
    raw = torch.stack([model.score(trees) for model in models])
    ways: dict[str, Tensor] = {
        "member 1": raw[0], "mean": ensemble.mean(together), "worst case": ensemble.worst(together),
        "mean - variance": ensemble.uncertainty_weighted(together, 1.0), "WARM": averaged.score(trees),
    }  # fmt: skip
    found = {name: _facts(trees, raw[0], scores) for name, scores in ways.items()}
    averaged.save(path / "model")
    annotate(path / "model", finite({"accuracy": found["WARM"]["accuracy"], "members": config.members}))
    doubt = float(ensemble.spread(together).mean())
    RunDirectory(path).write_json("ensemble.json", {"ways": found, "mean_spread_in_sd": doubt})
    return Ensembled(path, finished, found, max(each.exit_code for each in finished))


def _facts(trees: Any, first: Tensor, scores: Tensor) -> dict[str, Any]:
    """Accuracy of one way of joining, and its difference to the first member."""
    comparison = compare("accuracy", paired(trees, first), paired(trees, scores))
    return {"accuracy": asdict(comparison.after), "against_member_1": asdict(comparison.difference)}
