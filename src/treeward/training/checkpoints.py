"""Checkpoints: everything a training loop is between two steps, so that a resumed run is the same run.

A directory with weights.safetensors (trained weights), one safetensors file for each model that follows it, state.pt
(optimizer, scheduler, random state, the states of batches and the like) and state.json (plain facts).
"""

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from treeward.errors import UserError
from treeward.models.weights import trainable
from treeward.runs.directory import whole

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read: plain facts, the optimizer's and scheduler's states, the caller's states."""

    facts: dict[str, Any]
    training: dict[str, Any]
    states: dict[str, dict[str, Any]]
    random: dict[str, Tensor | None]


def save(
    directory: Path,
    model: nn.Module,
    followers: Mapping[str, nn.Module],
    facts: Mapping[str, Any],
    training: Mapping[str, Any],
    states: Mapping[str, Any],
) -> None:
    """Write a checkpoint, all or nothing: to a temporary name, then renamed. An older one there is deleted last."""
    temporary = directory.with_name(f".{directory.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    with whole(temporary):
        save_trainable(model, temporary / "weights.safetensors")
        for name, follower in followers.items():
            save_file(_tensors(follower), temporary / f"{name}.safetensors")
        gpu = _gpu(next(model.parameters()).device)
        random = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(gpu) if gpu else None}
        with (temporary / "state.pt").open("wb") as file:
            torch.save({"training": dict(training), "states": dict(states), "random": random}, file)
        (temporary / "state.json").write_text(json.dumps({**facts, "environment": _environment()}))
    old = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    temporary.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def read(directory: Path) -> Checkpoint:
    """The checkpoint's facts and states; its weights stay on disk until `restore`.

    Raises:
        UserError: the directory is no checkpoint.
    """
    if not (directory / "state.json").exists():
        raise UserError(f"{str(directory)!r} is not a checkpoint: it has no state.json")
    facts = json.loads((directory / "state.json").read_text())
    for name, value in _environment().items():
        if facts["environment"][name] != value:
            log.warning("resumed with %s %s, saved with %s: equal to an uninterrupted run only up to rounding",
                        name, value, facts["environment"][name])  # fmt: skip
    state = torch.load(directory / "state.pt", weights_only=True)
    return Checkpoint(facts, state["training"], state["states"], state["random"])


def check_same(directory: Path, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose settings differ.

    Raises:
        UserError: one differs; the first is named.
    """
    different = [name for name, value in current.items() if saved.get(name) != value]
    if different:
        name = different[0]
        raise UserError(
            f"{str(directory)!r} is of another run: {name} is {saved.get(name)!r} there and {current[name]!r} here; "
            "resume with the data, configuration and model it began with"
        )


def restore(directory: Path, model: nn.Module, followers: Mapping[str, nn.Module]) -> None:
    """Put saved weights back in place.

    Raises:
        UserError: a file is missing, or its tensors are not these models'.
    """
    load_trainable(model, directory / "weights.safetensors")
    for name, follower in followers.items():
        put_back(dict(follower.named_parameters()), directory / f"{name}.safetensors")


def restore_random(saved: Checkpoint, device: torch.device) -> None:
    """Put the random generators back, which dropout depends on."""
    cpu, cuda = saved.random["cpu"], saved.random["cuda"]
    assert cpu is not None
    torch.set_rng_state(cpu)
    gpu = _gpu(device)
    if gpu is not None and cuda is not None:
        torch.cuda.set_rng_state(cuda, gpu)


class MustMatch:
    """Facts that a resumed run must share with its checkpoint, by name: the start's hash, the loss and the like."""

    def __init__(self, facts: Mapping[str, str]) -> None:
        self.facts = dict(facts)

    def state_dict(self) -> dict[str, Any]:
        """The facts."""
        return self.facts

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compare.

        Raises:
            UserError: one differs; it is named.
        """
        check_same(Path("the checkpoint"), state, self.facts)


def save_trainable(model: nn.Module, file: Path) -> None:
    """Write the trainable weights as safetensors."""
    save_file({name: p.detach().contiguous() for name, p in trainable(model)}, file)


def load_trainable(model: nn.Module, file: Path) -> None:
    """Put saved trainable weights back in place.

    Raises:
        UserError: the file's tensors are not the model's trainable ones.
    """
    put_back(dict(trainable(model)), file)


def put_back(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Copy a file's tensors into these, in place.

    Raises:
        UserError: the file is missing, or its tensors have other names or shapes.
    """
    if not file.exists():
        raise UserError(f"{str(file)!r} is missing: the checkpoint belongs to another configuration")
    saved = load_file(file)
    if saved.keys() != tensors.keys():
        odd = sorted(saved.keys() ^ tensors.keys())
        raise UserError(f"{str(file)!r} belongs to another model: {odd[0]!r} is on one side only")
    for name, tensor in tensors.items():
        if saved[name].shape != tensor.shape:
            shapes = f"{tuple(saved[name].shape)} there and {tuple(tensor.shape)} here"
            raise UserError(f"{str(file)!r} belongs to another model: {name!r} is {shapes}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(saved[name])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().contiguous() for name, p in model.named_parameters()}


def _gpu(device: torch.device) -> torch.device | None:
    """The GPU whose generator draws this model's dropout; None on other devices."""
    return device if device.type == "cuda" else None


def _environment() -> dict[str, Any]:
    """What equal bits depend on besides the run itself."""
    return {"threads": torch.get_num_threads(), "torch": torch.__version__}
