"""The directory of `treeward pairs`: begun by one process alone, and gone on with where it is the same run's.

The samples are what costs time, so they are kept; a row that another policy or other prompts gave is found by the hash
of the weights and by the ids.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from treeward.data.prompts import Prompt
from treeward.errors import UserError
from treeward.runner.settings import dump, read_yaml
from treeward.runs.directory import RunDirectory, alone, created

CHUNK = 16
"""Prompts sampled, scored and written at a time: what a stopped run loses at most."""


def same_run(path: Path, config: Any, free: Sequence[str] = ()) -> None:
    """Refuse a directory that a run of another configuration left; the fields in `free` may differ.

    Raises:
        UserError: a field differs; it is named.
    """
    own, left = yaml.safe_load(written(config)), read_yaml(path / "config.yaml", f"{str(path / 'config.yaml')!r}")
    other = [name for name, value in own.items() if left.get(name) != value and name not in free]
    if other:
        raise UserError(
            f"--out {str(path)!r} was left by another run: {other[0]} is {left.get(other[0])!r} there and "
            f"{own[other[0]]!r} here; name another directory"
        )


def written(config: Any) -> str:
    """The configuration as YAML, without its place."""
    plain = json.loads(json.dumps({"command": "pairs", **dump(config), "out": None}))
    return str(yaml.safe_dump(plain, sort_keys=False))


@contextmanager
def begun(config: Any) -> Iterator[RunDirectory]:
    """A new directory with the configuration, this process alone in it."""
    run = created(config.name or "pairs", config.out)
    with alone(run.path):
        run.write("config.yaml", written(config))
        yield run


def kept(run: RunDirectory, prompts: Sequence[Prompt], generator: str) -> int:
    """How many rows of samples stay; of a run that was stopped while sampling the last, half-done chunk is cut off.

    Raises:
        UserError: a row was sampled from another prompt or by other weights than now.
    """
    count = 0
    for count, row in enumerate(run.each("samples.jsonl"), 1):
        now = prompts[count - 1] if count <= len(prompts) else None
        if now is None or row["prompt_ids"] != list(now.ids):
            raise UserError(
                f"--out {str(run.path)!r}: sample row {count} has the prompt {str(row['prompt'])[:60]!r}, where the "
                f"data now gives {str(now.text)[:60] if now else None!r}; it has changed: name another directory"
            )
        if row["generator"] != generator:
            raise UserError(
                f"--out {str(run.path)!r}: sample row {count} is by the weights {row['generator']}, and the policy's "
                f"are {generator}; it was trained since: name another directory"
            )
    if count < len(prompts):
        count -= count % CHUNK
        write_rows(run.path / "samples.jsonl", islice(run.each("samples.jsonl"), count))
    return count


def write_rows(path: Path, rows: Iterator[Mapping[str, Any]]) -> int:
    """Write rows to a temporary name, then rename; the number of them."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    count = 0
    with temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    temporary.rename(path)
    return count
