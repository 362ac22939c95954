"""A run's directory: claimed once, never overwritten, every file written whole or not at all.

runs/<name>/
  config.yaml  environment.json  metrics.jsonl  samples.jsonl  evaluation.jsonl  receipt.json  report.html
  model/  adapter/  checkpoints/step-000100/  checkpoints/best.safetensors
"""

import errno
import fcntl
import json
import logging
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from treeward.errors import UserError

log = logging.getLogger(__name__)

ROOT = Path("runs")
NAME = 200
"""Characters of a run's name at most."""
ENDED = ("receipt.json", "report.json")
"""What a run writes last."""


NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class DiskFull(UserError):
    """A write failed because the disk is full; the place and the fix are named."""


def is_full(problem: BaseException | None) -> bool:
    """Whether a write failed for want of space or quota, by this error or by one that it came after.

    Libraries in Rust say it in their text alone, and torch's archives fail once more while they are closed.
    """
    while problem is not None:
        if isinstance(problem, OSError) and problem.errno in NO_SPACE:
            return True
        if any(f"(os error {number})" in str(problem) for number in NO_SPACE):
            return True
        problem = problem.__context__
    return False


@contextmanager
def whole(*places: Path) -> Iterator[None]:
    """Within this, files or directories are written whole or not at all: what an error leaves of them is deleted."""
    try:
        yield
    except BaseException:
        for place in places:
            if place.is_dir():
                shutil.rmtree(place, ignore_errors=True)
            else:
                place.unlink(missing_ok=True)
        raise


def free_path(name: str, out: str | None, option: str = "--out") -> Path:
    """Where a new run goes: `out` if given, else runs/<name> or the next free number after it.

    Raises:
        UserError: `out` exists, its place cannot be written to, or `name` is no plain name of a folder.
    """
    plain = name.isprintable() and Path(name).name == name and name not in ("", ".", "..") and "\\" not in name
    if out is None and (not plain or len(name) > NAME):
        raise UserError(f"name is {name[:60]!r}; it names one folder in runs/, without slashes: use --out for others")
    path = Path(out) if out is not None else _next_free(name)
    if path.exists():
        stopped = (path / "config.yaml").exists() and not any((path / name).exists() for name in ENDED)
        more = f", or `treeward resume {out}`" if stopped else ""
        raise UserError(f"{option} {out!r} exists; runs are never overwritten: name another{more}")
    parent = next(p for p in path.absolute().parents if p.exists())
    try:
        tempfile.TemporaryDirectory(dir=parent).cleanup()
    except OSError as problem:
        raise UserError(
            f"{option} {str(path)!r} cannot be written ({problem.strerror} in {str(parent)!r}); name another place"
        ) from None
    return path


def _next_free(name: str) -> Path:
    path, number = ROOT / name, 1
    while path.exists():
        number += 1
        path = ROOT / f"{name}-{number}"
    return path


def created(name: str, out: str | None, option: str = "--out") -> "RunDirectory":
    """The directory of a new run, made now: `free_path`, and the next one where another run took it this moment.

    Raises:
        UserError: `out` exists by now, or its place cannot be written to.
    """
    while True:
        path = free_path(name, out, option)
        try:
            return RunDirectory.create(path)
        except FileExistsError:
            continue


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """While the block runs, no other process (or call) that asks the same may work in this directory.

    The lock goes with the process that holds it, so a killed one leaves none.

    Raises:
        UserError: another process works there.
    """
    with (path / ".lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{str(path)!r} is being written by process {file.read()}; wait for it, or name another directory"
            ) from None
        except OSError:
            log.info("%s lies on a file system without locks: start no second run there", path)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


class RunDirectory:
    """One run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> "RunDirectory":
        """Make the directory; it must not exist."""
        path.mkdir(parents=True)
        return cls(path)

    @classmethod
    def open(cls, path: str) -> "RunDirectory":
        """An existing run.

        Raises:
            UserError: there is no run at that place.
        """
        if not (Path(path) / "config.yaml").exists():
            raise UserError(f"{path!r} is not a run directory: it has no config.yaml")
        return cls(Path(path))

    def write(self, name: str, text: str) -> None:
        """Write a whole file: to a temporary name first, then renamed."""
        temporary = self.path / f".{name}.{os.getpid()}"
        with whole(temporary):
            temporary.write_text(text, encoding="utf-8")
            temporary.rename(self.path / name)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file; NaN and infinities become null."""
        self.write(name, json.dumps(finite(value), indent=1, ensure_ascii=False) + "\n")

    def write_lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write a JSONL file."""
        self.write(name, "".join(json.dumps(finite(row), ensure_ascii=False) + "\n" for row in rows))

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Add one line to a JSONL file, handed to the system before this returns."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite(row), ensure_ascii=False) + "\n")

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The rows of a JSONL file, a half-written last line left out; none if there is no file."""
        return list(self.each(name))

    def each(self, name: str) -> Iterator[dict[str, Any]]:
        """The same one by one, so that the file may be larger than memory."""
        path = self.path / name
        if path.exists():
            with path.open(encoding="utf-8", newline="\n") as file:
                yield from (json.loads(line) for line in file if line.endswith("\n"))

    def read_json(self, name: str) -> Any:
        """A JSON file's value; None if there is no file."""
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def checkpoint(self, step: int) -> Path:
        """Where the state after `step` steps goes."""
        return self.path / "checkpoints" / f"step-{step:06d}"

    @property
    def best(self) -> Path:
        """Where the best weights so far are kept."""
        return self.path / "checkpoints" / "best.safetensors"

    def checkpoints(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        return sorted(p for p in (self.path / "checkpoints").glob("step-*") if (p / "state.json").exists())


def finite(value: Any) -> Any:
    """The same value with NaN and infinities as None, and mappings and sequences as plain ones."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
