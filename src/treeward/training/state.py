"""Everything that a training run is, between two steps; saved whole, so that a resumed run is the same run."""

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import AdamW
from transformers import get_scheduler

from treeward import runtime as ranks
from treeward.errors import UserError
from treeward.models.weights import trainable
from treeward.runs.directory import whole

log = logging.getLogger(__name__)


@runtime_checkable
class Rates(Protocol):
    """The part of a loop's configuration that the optimiser needs."""

    @property
    def lr(self) -> float: ...
    @property
    def schedule(self) -> str: ...
    @property
    def warmup(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...


@dataclass(frozen=True)
class DataOrder:
    """Which rows make up which batch: a function of the seed and the step alone, never of the rank or of history.

    Each pass over the rows has its own permutation; the last batch of a pass may be short.
    """

    rows: int
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of one pass."""
        return math.ceil(self.rows / self.batch_size)

    def batch(self, index: int) -> list[int]:
        """The rows of the step after `index` steps."""
        epoch, place = divmod(index, self.steps_per_epoch)
        order = torch.randperm(self.rows, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + epoch))
        return order[place * self.batch_size : (place + 1) * self.batch_size].tolist()

    def reached(self, steps: int) -> list[int]:
        """The rows that `steps` steps reach, each once, in the order of first use."""
        seen: dict[int, None] = {}
        for index in range(min(steps, self.steps_per_epoch)):
            seen |= dict.fromkeys(self.batch(index))
        return list(seen)


class TrainState:
    """Model, optimiser, rate, position in the data and random state. `index` counts the steps taken.

    `decided` is what a run is beside its order and rate, by name: its data, its start, its loss. A checkpoint of
    another run is refused.

    `companions` are models that change with the steps without being trained (an EMA reference), by name.

    `notes` holds plain values of whoever drives the loop (the best step so far); they are saved too.
    """

    def __init__(
        self, model: nn.Module, order: DataOrder, total: int, config: Rates, decided: Mapping[str, str] | None = None,
        companions: Mapping[str, nn.Module] | None = None,
    ) -> None:  # fmt: skip
        self.model = model
        self.companions = dict(companions or {})
        self.order = order
        self.index = 0
        self.notes: dict[str, Any] = {}
        self._peak = config.lr
        self._plan = {
            "rows": order.rows, "batch_size": order.batch_size, "seed": order.seed, "steps": total,
            "lr": config.lr, "schedule": config.schedule, "warmup": config.warmup, "weight_decay": config.weight_decay,
            **(decided or {}),
        }  # fmt: skip
        self.optimizer = AdamW(
            [p for _, p in trainable(model)], lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        plan: Any = get_scheduler(config.schedule, self.optimizer, round(config.warmup * total), total + 1)
        self._factor: Callable[[int], float] = plan.lr_lambdas[0]

    @property
    def parameters(self) -> list[Tensor]:
        """The tensors that the optimiser holds."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def rate(self) -> float:
        """The learning rate of the next step; shifted by one, so that the first is above 0."""
        return self._peak * self._factor(self.index + 1)

    def advance(self) -> None:
        """Take one optimiser step for the gradients that are there."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.index += 1

    def save(self, directory: Path) -> None:
        """Write the state into `directory`, all or nothing: to a temporary name first, then renamed. What stood there
        is deleted last.
        """
        temporary = directory.with_name(f".{directory.name}.{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        with whole(temporary):
            save_trainable(self.model, temporary / "weights.safetensors")
            for name, companion in self.companions.items():
                tensors = {n: p.detach().contiguous() for n, p in companion.named_parameters()}
                save_file(tensors, temporary / f"{name}.safetensors")
            random = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(self._gpu) if self._gpu else None}
            with (temporary / "state.pt").open("wb") as file:
                torch.save({"optimizer": self.optimizer.state_dict(), "random": random}, file)
            facts = {
                "index": self.index, "notes": self.notes, "plan": self._plan, "next_rows": self.order.batch(self.index),
                "under": _circumstances(),
            }  # fmt: skip
            (temporary / "state.json").write_text(json.dumps(facts))
        old = directory.with_name(f".{directory.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if directory.exists():
            directory.rename(old)
        temporary.rename(directory)
        shutil.rmtree(old, ignore_errors=True)

    def load(self, directory: Path) -> None:
        """Continue from what `save` wrote.

        Raises:
            UserError: the directory is no checkpoint, or one of another model, other data or another configuration.
        """
        if not (directory / "state.json").exists():
            raise UserError(f"{str(directory)!r} is not a checkpoint: it has no state.json")
        facts = json.loads((directory / "state.json").read_text())
        other = [name for name, value in self._plan.items() if facts["plan"].get(name) != value]
        if other:
            raise UserError(
                f"{str(directory)!r} is of another run: {other[0]} is {facts['plan'].get(other[0])!r} there and "
                f"{self._plan[other[0]]!r} here; resume with the data, configuration and model it began with"
            )
        if facts["next_rows"] != self.order.batch(facts["index"]):
            raise UserError(
                f"{str(directory)!r} would go on with rows {facts['next_rows'][:3]}..., this run with "
                f"{self.order.batch(facts['index'])[:3]}...: the order of the data has changed"
            )
        for name, here in _circumstances().items():
            if facts["under"][name] != here:
                log.warning("resumed with %s %s, saved with %s: equal to an unstopped run only to rounding",
                            name, here, facts["under"][name])  # fmt: skip
        load_trainable(self.model, directory / "weights.safetensors")
        for name, companion in self.companions.items():
            put_back(dict(companion.named_parameters()), directory / f"{name}.safetensors")
        saved = torch.load(directory / "state.pt", weights_only=True)
        self.optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["random"]["cpu"])
        if self._gpu and saved["random"]["cuda"] is not None:
            torch.cuda.set_rng_state(saved["random"]["cuda"], self._gpu)
        self.index, self.notes = facts["index"], facts["notes"]

    @property
    def _gpu(self) -> torch.device | None:
        """The GPU whose generator draws this model's dropout."""
        device = self.parameters[0].device
        return device if device.type == "cuda" else None


def _circumstances() -> dict[str, Any]:
    """What equal bits depend on beside the run itself."""
    return {"threads": torch.get_num_threads(), "processes": ranks.world(), "torch": torch.__version__}


def save_trainable(model: nn.Module, file: Path) -> None:
    """Write the trainable weights as safetensors."""
    save_file({name: p.detach().contiguous() for name, p in trainable(model)}, file)


def load_trainable(model: nn.Module, file: Path) -> None:
    """Put saved trainable weights back in place.

    Raises:
        UserError: the file's tensors are not the model's trainable ones.
    """
    put_back(dict(trainable(model)), file)


def put_back(own: Mapping[str, Tensor], file: Path) -> None:
    """Put a file's tensors into these, in place.

    Raises:
        UserError: the file is not there, or its tensors are others.
    """
    if not file.exists():
        raise UserError(f"{str(file)!r} is missing: the checkpoint belongs to another configuration")
    saved = load_file(file)
    if saved.keys() != own.keys():
        odd = sorted(saved.keys() ^ own.keys())
        raise UserError(f"{str(file)!r} belongs to another model: {odd[0]!r} is on one side only")
    for name, parameter in own.items():
        if saved[name].shape != parameter.shape:
            shapes = f"{tuple(saved[name].shape)} there and {tuple(parameter.shape)} here"
            raise UserError(f"{str(file)!r} belongs to another model: {name!r} is {shapes}")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved[name])
