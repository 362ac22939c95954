"""What a bench is told, what it returns, and the file that keeps it: `bench/latest.json`. Standard library only."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

PeerMode = Literal["default", "precomputed", "best"]


class Unequal(Exception):
    """Both sides do not compute the same numbers, so that their speeds do not compare."""


@dataclass(frozen=True)
class Setting:
    """Where the data lie, a directory to work in, both interpreters, and how much to run."""

    data: Path
    work: Path
    ours: Path
    peer: Path
    pairs: int
    precisions: Sequence[str]
    threads: int


@dataclass(frozen=True)
class Speed:
    """One measurement: how many of what the bench counts, in how long, at which peak memory, and how many
    processors others held meanwhile."""

    count: int
    seconds: float
    gb: float
    others: float

    @property
    def per_s(self) -> float:
        """The rate."""
        return self.count / self.seconds


@dataclass(frozen=True, kw_only=True)
class Record:
    """One comparison. Rates count what the bench counts (pairs); `ratio` and `memory_ratio` are ours over the peer's;
    gigabytes are 1e9 bytes of peak resident memory."""

    name: str
    precision: str
    peer: str
    peer_mode: PeerMode
    ours_per_s: float
    peer_per_s: float
    ratio: float
    ours_gb: float
    peer_gb: float
    memory_ratio: float


def record(name: str, precision: str, *, peer: str, peer_mode: PeerMode, ours: Speed, theirs: Speed) -> Record:
    """The record of two measurements."""
    return Record(
        name=name, precision=precision, peer=peer, peer_mode=peer_mode,
        ours_per_s=ours.per_s, peer_per_s=theirs.per_s, ratio=ours.per_s / theirs.per_s,
        ours_gb=ours.gb, peer_gb=theirs.gb, memory_ratio=ours.gb / theirs.gb,
    )  # fmt: skip


def write(file: Path, name: str, records: Sequence[Record]) -> None:
    """Put this bench's records in place of its former ones; those of other benches stay."""
    kept = json.loads(file.read_text()) if file.exists() else []
    rows = [row for row in kept if row["name"] != name] + [asdict(found) for found in records]
    file.write_text(json.dumps(rows, indent=1) + "\n")
