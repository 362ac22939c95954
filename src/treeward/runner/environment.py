"""The facts of the machine and the software that a run records."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import torch

from treeward.trees.forward import TreeModule

PACKAGES = ("treeward", "torch", "transformers", "tokenizers", "datasets", "peft", "accelerate", "safetensors", "numpy")


def versions() -> dict[str, str]:
    """Installed versions of what decides the numbers."""
    found = {name: _version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}


def environment(model: TreeModule) -> dict[str, Any]:
    """What environment.json holds: when the run began (UTC), versions, device, precision, layout, threads, revision."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "platform": platform.platform(),
        "device": str(model.device),
        "precision": model.precision,
        "layout": model.backend,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "git": _git(),
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def _git() -> str | None:
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
