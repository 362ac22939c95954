"""Adapters around a public model, by peft: put on, switched off, merged, saved."""

import copy
from pathlib import Path
from typing import Any

import peft
from torch import nn

from treeward.errors import UserError
from treeward.models.loading import LoRA


def put_on(module: Any, config: LoRA, task: str, trained_whole: tuple[str, ...] = ()) -> Any:
    """A `PeftModel` around `module`, whose layers are changed in place; `trained_whole` parts train without adapter."""
    targets: Any = list(config.targets) or "all-linear"
    plan = peft.LoraConfig(
        r=config.r, lora_alpha=config.alpha, lora_dropout=0.0, target_modules=targets, task_type=task,
        modules_to_save=list(trained_whole) or None,
    )  # fmt: skip
    try:
        return peft.get_peft_model(module, plan)
    except ValueError as problem:
        raise UserError(f"model.lora.targets {config.targets}: {str(problem).splitlines()[0]}") from None


def does_nothing(module: nn.Module) -> bool:
    """Whether adapters leave the model's numbers as they are: LoRA's second matrices are all zero, as they start.

    Of any other kind of adapter this cannot be told, and the answer is no.
    """
    added = [(name, p) for name, p in module.named_parameters() if "lora_" in name]
    second = [p for name, p in added if "lora_B" in name or "lora_embedding_B" in name]
    return bool(second) and not any(bool(p.any()) for p in second)


def directory_for(place: str | Path) -> Path:
    """The directory that a model is saved into.

    Raises:
        UserError: a file stands at that place.
    """
    if Path(place).is_file():
        raise UserError(f"{str(place)!r} is a file; name a directory to save into")
    return Path(place)


def save(adapter: Any | None, module: nn.Module, directory: Path, adapter_directory: Path | None = None) -> None:
    """Write the model (merged where there is an adapter) into `directory`, and the adapter in peft's layout into
    `adapter_directory`, by default `directory/adapter`; both as safetensors."""
    whole: Any = module
    if adapter is not None:
        adapter.save_pretrained(adapter_directory or directory / "adapter")
        whole = copy.deepcopy(adapter).merge_and_unload()
    whole.save_pretrained(directory)
