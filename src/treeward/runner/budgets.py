"""The token budgets of a model: those that it was trained with, and those of commands that use it afterwards.

A prompt or response that is cut at another length than in training is another text to the model, and figures differ.
"""

import logging
from collections.abc import Mapping
from typing import Any

import yaml

from treeward.data import store
from treeward.data.prepare import DataConfig
from treeward.models.artifact import Budgets, read
from treeward.runner.settings import last_value

log = logging.getLogger(__name__)


def trained_with(config: DataConfig) -> Budgets:
    """The budgets at which the data of a training run is cut; prepared data was cut when it was prepared."""
    options = store.options(config.source) if store.is_prepared(config.source) else vars(config)
    return Budgets(options["max_prompt"], options["max_response"])


def with_budgets(values: Mapping[str, Any]) -> dict[str, Any]:
    """A command's mapping in which missing budgets are those of the model's `treeward.json`.

    A budget that differs from the model's is used as given, with a warning. Prepared data keeps its own budgets.

    Raises:
        UserError: the model is a run directory without a model.
    """
    model, data = values.get("model", {}), values.get("data", {})
    if not isinstance(model, Mapping) or not isinstance(data, Mapping) or "path" not in model:
        return dict(values)
    budgets = Budgets.of(read(str(last_value(model["path"]))))
    if budgets is None or store.is_prepared(str(last_value(data.get("source", "")))):
        return dict(values)
    filled = dict(data)
    for name, trained in vars(budgets).items():
        option = yaml.safe_load(str(last_value(data[name]))) if name in data else None
        if option is None:
            filled[name] = trained
        elif option != trained:
            log.warning("data.%s is %s; the model was trained with %d", name, option, trained)
    default = DataConfig()
    changed = [f"{n} {value}" for n, value in vars(budgets).items() if n not in data and value != getattr(default, n)]
    if changed:
        log.info("data: %s, as the model was trained", ", ".join(changed))
    return {**values, "data": filled}
