"""Runs that are made once: a finished one is left as it is, a stopped one goes on, a missing one is trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from treeward.methods.method import Method, RunConfig
from treeward.runner import run as runner
from treeward.runner import settings
from treeward.runs.directory import RunDirectory


def made(config: type[RunConfig], method: type[Method], fields: Mapping[str, Any], path: Path) -> Path:
    """The model of the run in `path`, which has these settings."""
    if not (path / "receipt.json").exists():
        given = {key: value for key, value in fields.items() if key != "command"} | {"out": str(path)}
        stopped = RunDirectory(path) if (path / "config.yaml").exists() else None
        runner.run(settings.build(config, given), method, resume=stopped)
    return path / "model"
