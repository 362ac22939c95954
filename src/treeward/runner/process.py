"""The process that runs a command: threads and memory, set once at its start, and what environment.json records.

Results depend on the number of threads (floating-point sums are split differently). No library code changes it.
"""

import ctypes
import os
import platform
import resource
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import torch

from treeward.models.policy import Policy
from treeward.models.reward_model import RewardModel
from treeward.trees.forward import TreeModule

TINY = 2_000_000
"""Models below this many parameters run on one CPU thread. Two threads make them 25 % faster at best, and forty times
slower once another process uses a core, because each of their many small products waits for the slower thread."""


def use_threads_for(parameters: int, device: torch.device) -> int:
    """Set the number of CPU threads for a model of this many parameters (adapters not counted); returns the number.

    A model below `TINY` on the CPU gets one thread; in any other case the number stays as it is.
    """
    if device.type == "cpu" and parameters < TINY:
        torch.set_num_threads(1)
    return torch.get_num_threads()


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next step instead of returning it to the kernel; whether that was possible.

    Every step on the CPU allocates the same large tensors. Mapping them anew costs a page fault for each 4 KiB
    (measured: 28 % of a GPT-2 124M step on two cores). Peak memory hardly changes. Without glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    libc: Any = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return False
    trim_threshold, mmap_max = -1, -4
    return bool(libc.mallopt(mmap_max, 0)) and bool(libc.mallopt(trim_threshold, 2**31 - 1))


def prepare_process(model: Policy | RewardModel) -> None:
    """Set threads and memory for this model; every command calls it once, after loading."""
    packed = model.packed
    parameters = sum(p.numel() for name, p in packed.model.named_parameters() if "lora_" not in name)
    use_threads_for(parameters, packed.device)
    if packed.device.type == "cpu":
        keep_freed_memory()


PACKAGES = ("treeward", "torch", "transformers", "tokenizers", "datasets", "peft", "accelerate", "safetensors", "numpy")


def versions() -> dict[str, str]:
    """Installed versions of the packages that the numbers depend on."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def environment(model: TreeModule) -> dict[str, Any]:
    """The content of environment.json: start time (UTC), versions, device, precision, layout, threads, revision."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "platform": platform.platform(),
        "device": str(model.device),
        "precision": model.precision,
        "layout": model.backend,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "git": _git_revision(),
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def _git_revision() -> str | None:
    """The commit of the working directory; None outside a repository."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def peak_gb() -> float:
    """Peak resident memory of this process so far, in 1e9 bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
