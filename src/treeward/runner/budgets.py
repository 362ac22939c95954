"""The budgets of a model: those that a run trained it with, and those of the commands that read data for it later.

Prompts and responses that are cut at other lengths than in training are other texts to the model, and its figures move.
"""

import logging
from collections.abc import Mapping
from typing import Any

import yaml

from treeward.data import store
from treeward.data.prepare import DataConfig
from treeward.models.artifact import Budgets, read
from treeward.runner.settings import Repeated

log = logging.getLogger(__name__)


def trained_with(config: DataConfig) -> Budgets:
    """The budgets at which the data of a training run was cut; prepared data says its own."""
    made = store.options(config.source) if store.is_prepared(config.source) else vars(config)
    return Budgets(made["max_prompt"], made["max_response"])


def with_budgets(values: Mapping[str, Any]) -> dict[str, Any]:
    """A command's mapping with the budgets of its model's `treeward.json` filled in where it names none.

    Another value than the model's stands, and is reported. Prepared data was cut when it was prepared.

    Raises:
        UserError: the model is a run directory without a model.
    """
    model, data = values.get("model", {}), values.get("data", {})
    if not isinstance(model, Mapping) or not isinstance(data, Mapping) or "path" not in model:
        return dict(values)
    budgets = Budgets.of(read(str(_last(model["path"]))))
    if budgets is None or store.is_prepared(str(_last(data.get("source", "")))):
        return dict(values)
    filled = dict(data)
    for name, trained in vars(budgets).items():
        given = yaml.safe_load(str(_last(data[name]))) if name in data else None
        if given is None:
            filled[name] = trained
        elif given != trained:
            log.warning("data.%s is %s; the model was trained with %d", name, given, trained)
    default = DataConfig()
    taken = [f"{n} {value}" for n, value in vars(budgets).items() if n not in data and value != getattr(default, n)]
    if taken:
        log.info("data: %s, as the model was trained", ", ".join(taken))
    return {**values, "data": filled}


def _last(value: Any) -> Any:
    """The value of an option that may be given several times."""
    return value[-1] if isinstance(value, Repeated) else value
