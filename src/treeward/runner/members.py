"""`treeward reward --members M`: an ensemble of reward models from one start with different data orders.

Each member is an ordinary run. Their scores are combined by mean, worst case, and mean minus variance; their weights by
WARM (averaging), which becomes the ensemble's `model/`. Each combination is compared with the first member on the same
held-out pairs.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from treeward.data.prepare import prepare
from treeward.evaluation.rewards import paired
from treeward.methods.reward import Reward, RewardRun, loss_for, required_data
from treeward.models import ensemble
from treeward.models.artifact import annotate
from treeward.models.reward_model import RewardModel
from treeward.rewards.models import ENSEMBLE
from treeward.runner.run import Finished, data_of, run
from treeward.runs.directory import RunDirectory, finite, free_path
from treeward.stats.tables import compare
from treeward.trees.tokens import TokenTree

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedEnsemble:
    """The directory, the members' runs, and for each combination its accuracy and its gain over the first member."""

    path: Path
    members: list[Finished]
    combinations: dict[str, dict[str, Any]]
    exit_code: int


def train_members(config: RewardRun) -> TrainedEnsemble:
    """Train `config.members` reward models and combine them.

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
            config,
            members=1,
            seed=config.seed + number,
            model=replace(config.model, seed=start),
            out=str(path / f"member-{number + 1}"),
        )
        finished.append(run(member, Reward))
    models = [RewardModel.load(str(each.path), device=config.model.device) for each in finished]
    purpose = required_data(loss_for(models[0].head, config.loss))
    trees = data_of(config, prepare(config.data, models[0].tokenizer, purpose)).held_out
    averaged = ensemble.warm(models)
    together = ensemble.Ensemble.standardised(models, trees)
    standardised = together.scores(trees)
    raw = torch.stack([model.score(trees) for model in models])
    scores: dict[str, Tensor] = {
        "member 1": raw[0],
        "mean": ensemble.mean(standardised),
        "worst case": ensemble.worst(standardised),
        "mean - variance": ensemble.uncertainty_weighted(standardised, 1.0),
        "WARM": averaged.score(trees),
    }
    combinations = {name: _against_first(trees, raw[0], combined) for name, combined in scores.items()}
    averaged.save(path / "model")
    annotate(path / "model", finite({"accuracy": combinations["WARM"]["accuracy"], "members": config.members}))
    spread = float(ensemble.spread(standardised).mean())
    facts = {
        "ways": combinations,
        "mean_spread_in_sd": spread,
        "members": [each.path.name for each in finished],
        "centres": together.centres,
        "scales": together.scales,
    }
    RunDirectory(path).write_json(ENSEMBLE, facts)
    return TrainedEnsemble(path, finished, combinations, max(each.exit_code for each in finished))


def _against_first(trees: Sequence[TokenTree], first: Tensor, combined: Tensor) -> dict[str, Any]:
    """Accuracy of one combination, and its difference to the first member."""
    comparison = compare("accuracy", paired(trees, first), paired(trees, combined))
    return {"accuracy": asdict(comparison.after), "against_member_1": asdict(comparison.difference)}
