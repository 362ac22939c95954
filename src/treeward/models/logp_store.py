"""Log-probabilities that cannot change, kept on disk: computed once for all losses, betas and runs.

The store is one SQLite file. A key is the SHA-256 of everything that the numbers depend on: the model's identity
(weights, configuration, precision, layout, device, versions) and the ids of prompt and response. So an entry cannot be
stale, and what was written for one run serves every other. Values are per token, with a checksum; a damaged one counts
as missing. Several processes may read and write at once. Above its limit the store drops what was not used for longest.
"""

import hashlib
import os
import sqlite3
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from treeward.errors import UserError

LIMIT = 2 * 10**9
"""Bytes of values that a store keeps."""
CHUNK = 500
"""Keys a query."""
WAIT = 60.0
"""Seconds to wait for another writer."""

SCHEMA = "CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, logps BLOB, sum INTEGER, used REAL) WITHOUT ROWID"

OLDEST = """DELETE FROM entries WHERE key IN (SELECT key FROM (SELECT key, SUM(LENGTH(logps)) OVER
    (ORDER BY used DESC ROWS UNBOUNDED PRECEDING) AS reach FROM entries) WHERE reach > ?)"""
"""Entries that no longer fit when those used last are counted first."""


def default_path() -> Path:
    """`$TREEWARD_CACHE/reference.sqlite`, else the user's cache directory."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TREEWARD_CACHE") or Path(cache) / "treeward") / "reference.sqlite"


def key(identity: str, prompt: Sequence[int], branch: Sequence[int]) -> bytes:
    """The address of one branch's values under one model."""
    return hashlib.sha256(repr((identity, tuple(prompt), tuple(branch))).encode()).digest()


class LogpStore:
    """Per-token log-probabilities by key, in the file `path`, at most `limit` bytes of them.

    Raises:
        UserError: the file is not a store, or cannot be written.
    """

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        self.path = path
        self.limit = limit
        with self._open() as base:
            base.execute(SCHEMA)

    def read(self, keys: Sequence[bytes]) -> dict[bytes, Float[Tensor, "L"]]:
        """What is there of these keys, sound entries alone; each is marked as used now."""
        found: dict[bytes, Tensor] = {}
        with self._open() as base:
            for start in range(0, len(keys), CHUNK):
                part = keys[start : start + CHUNK]
                marks = ",".join("?" * len(part))
                for name, values, check in base.execute(
                    f"SELECT key, logps, sum FROM entries WHERE key IN ({marks})", part
                ):
                    if zlib.crc32(values) == check:
                        found[name] = torch.from_numpy(np.frombuffer(values, dtype=np.float32).copy())
                base.execute(f"UPDATE entries SET used = ? WHERE key IN ({marks})", (time.time(), *part))
        return found

    def write(self, found: Mapping[bytes, Float[Tensor, "L"]]) -> None:
        """Keep these values; entries that are there already stay or are replaced by equals."""
        rows = []
        for name, values in found.items():
            data = values.float().cpu().numpy().tobytes()
            rows.append((name, data, zlib.crc32(data), time.time()))
        with self._open() as base:
            base.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", rows)
            self._shrink(base)

    @property
    def size(self) -> int:
        """Bytes of values."""
        with self._open() as base:
            return _size(base)

    def _shrink(self, base: sqlite3.Connection) -> None:
        """Drop the entries unused for longest until the rest fits."""
        if _size(base) > self.limit:
            base.execute(OLDEST, (self.limit,))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection for one transaction: all of it happens, or nothing."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            base = sqlite3.connect(self.path, timeout=WAIT)
        except (OSError, sqlite3.Error) as problem:
            raise UserError(f"the store {str(self.path)!r} cannot be opened ({problem}); {MEND}") from None
        try:
            with base:
                base.execute("PRAGMA synchronous = NORMAL")
                yield base
        except sqlite3.Error as problem:
            raise UserError(f"the store {str(self.path)!r} cannot be used ({problem}); {MEND}") from None
        finally:
            base.close()


def _size(base: sqlite3.Connection) -> int:
    return int(base.execute("SELECT COALESCE(SUM(LENGTH(logps)), 0) FROM entries").fetchone()[0])


MEND = "name another with reference.store, switch it off by setting reference.store to off, or delete it"
