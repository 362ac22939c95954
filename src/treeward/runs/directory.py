"""The directory of a run: made once, never overwritten; every file is written completely or not at all.

runs/<name>/
  config.yaml  environment.json  metrics.jsonl  samples.jsonl  evaluation.jsonl  receipt.json  report.html
  rollouts.jsonl  samples-by-step.jsonl
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from treeward.errors import UserError

log = logging.getLogger(__name__)

ROOT = Path("runs")
NAME = 200
"""Length limit of a run's name, in characters."""
ENDED = ("receipt.json", "report.json")
"""The last file that a run writes: its receipt, of `treeward pairs` its report."""


NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class DiskFull(UserError):
    """A write failed because the disk is full; the place and the fix are named."""


def is_full(problem: BaseException | None) -> bool:
    """Whether this error, or one that it followed, means that the disk or the quota is full.

    Libraries in Rust only name the error number in their message, and closing a torch archive raises a second error.
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
    """Inside, files or directories are written completely or not at all: after an error they are deleted."""
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
    """The path of a new run: `out` if given, else runs/<name>, or runs/<name>-2 and so on if that exists.

    Raises:
        UserError: `out` exists or cannot be written, or `name` is not the name of one folder.
    """
    plain = name.isprintable() and Path(name).name == name and name not in ("", ".", "..") and "\\" not in name
    if out is None and (not plain or len(name) > NAME):
        raise UserError(
            f"name is {name[:60]!r}; it must be the name of one folder in runs/; --out takes any other place"
        )
    path = Path(out) if out is not None else _next_free(name)
    if path.exists():
        stopped = (path / "config.yaml").exists() and not any((path / last).exists() for last in ENDED)
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
    """Make the directory of a new run at `free_path`, or at the next one if another run has just taken it.

    Raises:
        UserError: `out` exists or cannot be written.
    """
    while True:
        path = free_path(name, out, option)
        try:
            return RunDirectory.create(path)
        except FileExistsError:
            continue


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Lock this directory: inside, no other process (or call) can lock it. The lock ends with the process.

    Raises:
        UserError: another process has locked it.
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
            log.info("%s is on a file system without locks: start no second run there", path)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@dataclass(frozen=True)
class Summary:
    """A run in a list: its receipt (None before it has ended), the last step in its metrics.jsonl (None without one),
    and when its newest file was written, in seconds since the epoch.
    """

    path: Path
    receipt: dict[str, Any] | None
    step: int | None
    changed: float


def summaries(root: Path) -> list[Summary]:
    """The runs in a directory, newest first: itself, its folders and their folders (points of a sweep, stages)."""
    places = [file.parent for depth in ("", "*/", "*/*/") for file in root.glob(f"{depth}config.yaml")]
    return sorted(map(_summary, places), key=lambda run: run.changed, reverse=True)


def _summary(path: Path) -> Summary:
    run = RunDirectory(path)
    step = None
    for row in run.each("metrics.jsonl"):
        step = row.get("step", step)
    newest = max(file.stat().st_mtime for file in path.iterdir() if file.is_file())
    return Summary(path, run.read_json("receipt.json"), step, newest)


class RunDirectory:
    """One run on disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path) -> "RunDirectory":
        """Make the directory, which must not exist."""
        path.mkdir(parents=True)
        return cls(path)

    @classmethod
    def open(cls, path: str) -> "RunDirectory":
        """An existing run.

        Raises:
            UserError: the directory has no config.yaml.
        """
        if not (Path(path) / "config.yaml").exists():
            raise UserError(f"{path!r} is not a run directory: it has no config.yaml")
        return cls(Path(path))

    @contextmanager
    def _replaced(self, name: str) -> Iterator[Path]:
        """A temporary path to write to; at the end it is renamed."""
        temporary = self.path / f".{name}.{os.getpid()}"
        with whole(temporary):
            yield temporary
            temporary.rename(self.path / name)

    def write(self, name: str, text: str) -> None:
        """Write a file completely: under a temporary name first, then renamed."""
        with self._replaced(name) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file; NaN and infinities become null."""
        self.write(name, json.dumps(finite(value), indent=1, ensure_ascii=False) + "\n")

    def write_lines(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write a JSONL file, row by row; the rows may come from the file that it replaces."""
        with self._replaced(name) as temporary, temporary.open("w", encoding="utf-8") as file:
            file.writelines(map(_line, rows))

    def append(self, name: str, *rows: Mapping[str, Any]) -> None:
        """Add lines to a JSONL file; they are with the operating system when this returns."""
        with (self.path / name).open("a", encoding="utf-8") as file:
            file.writelines(map(_line, rows))

    def keep_until(self, name: str, step: int) -> None:
        """Drop the rows of later steps from a JSONL file, if there is one."""
        if (self.path / name).exists():
            self.write_lines(name, (row for row in self.each(name) if row["step"] <= step))

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The rows of a JSONL file without a half-written last line; none if there is no file."""
        return list(self.each(name))

    def each(self, name: str) -> Iterator[dict[str, Any]]:
        """The rows one by one, for files that are larger than memory."""
        path = self.path / name
        if path.exists():
            with path.open(encoding="utf-8", newline="\n") as file:
                yield from (json.loads(line) for line in file if line.endswith("\n"))

    def read_json(self, name: str) -> Any:
        """The value of a JSON file; None if there is no file."""
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def checkpoint(self, step: int) -> Path:
        """The path of the checkpoint after `step` steps."""
        return self.path / "checkpoints" / f"step-{step:06d}"

    @property
    def best(self) -> Path:
        """The path of the best weights so far."""
        return self.path / "checkpoints" / "best.safetensors"

    def checkpoints(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        return sorted(p for p in (self.path / "checkpoints").glob("step-*") if (p / "state.json").exists())


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(finite(row), ensure_ascii=False) + "\n"


def finite(value: Any) -> Any:
    """The value for JSON: NaN and infinities become None, mappings dicts, tuples lists."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
