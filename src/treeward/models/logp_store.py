"""A store on disk for reference log-probabilities: computed once for all losses, betas and runs.

The store is one SQLite file. A key is the SHA-256 of everything that the values depend on: the model's identity
(weights, configuration, precision, layout, device, versions) and the ids of prompt and response. So an entry is never
out of date, and entries of one run serve all others. Values are per token, with a checksum; a damaged entry counts as
missing. Several processes may read and write at once. Above its limit the store drops the least recently used entries.
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

FILE_NAME = "reference-logps.sqlite"
LIMIT = 2 * 10**9
"""Bytes of values that a store keeps."""
KEYS_PER_QUERY = 500
WAIT = 60.0
"""Seconds to wait for another process that writes."""
STORE_FIX = "name another file with reference.store, set reference.store to off, or delete the file"

SCHEMA = "CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, logps BLOB, sum INTEGER, used REAL) WITHOUT ROWID"

DROP_OLDEST = """DELETE FROM entries WHERE key IN (SELECT key FROM (SELECT key, SUM(LENGTH(logps)) OVER
    (ORDER BY used DESC ROWS UNBOUNDED PRECEDING) AS reach FROM entries) WHERE reach > ?)"""
"""Deletes the entries that do not fit into the limit when the most recently used ones are counted first."""


def default_path() -> Path:
    """`reference-logps.sqlite` in `$TREEWARD_CACHE`, else in the user's cache directory."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("TREEWARD_CACHE") or Path(cache) / "treeward") / FILE_NAME


def key(identity: str, prompt: Sequence[int], branch: Sequence[int]) -> bytes:
    """The key of one branch's values under one model."""
    return hashlib.sha256(repr((identity, tuple(prompt), tuple(branch))).encode()).digest()


class LogpStore:
    """Per-token log-probabilities by key, in the file `path`; at most `limit` bytes of values.

    Raises:
        UserError: the file is not a store, or cannot be written.
    """

    def __init__(self, path: Path, limit: int = LIMIT) -> None:
        self.path = path
        self.limit = limit
        with self._open() as database:
            database.execute(SCHEMA)

    def read(self, keys: Sequence[bytes]) -> dict[bytes, Float[Tensor, "L"]]:
        """The entries of these keys that exist and are not damaged; each is marked as used now."""
        logps: dict[bytes, Tensor] = {}
        with self._open() as database:
            for start in range(0, len(keys), KEYS_PER_QUERY):
                part = keys[start : start + KEYS_PER_QUERY]
                marks = ",".join("?" * len(part))
                rows = database.execute(f"SELECT key, logps, sum FROM entries WHERE key IN ({marks})", part)
                for name, data, checksum in rows:
                    if zlib.crc32(data) == checksum:
                        logps[name] = torch.from_numpy(np.frombuffer(data, dtype=np.float32).copy())
                database.execute(f"UPDATE entries SET used = ? WHERE key IN ({marks})", (time.time(), *part))
        return logps

    def write(self, logps: Mapping[bytes, Float[Tensor, "L"]]) -> None:
        """Add or replace these entries, then drop the least recently used ones above the limit."""
        rows = []
        for name, values in logps.items():
            data = values.float().cpu().numpy().tobytes()
            rows.append((name, data, zlib.crc32(data), time.time()))
        with self._open() as database:
            database.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", rows)
            if _size(database) > self.limit:
                database.execute(DROP_OLDEST, (self.limit,))

    @property
    def size(self) -> int:
        """Bytes of values."""
        with self._open() as database:
            return _size(database)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection for one transaction, which is undone if an error is raised in it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            database = sqlite3.connect(self.path, timeout=WAIT)
        except (OSError, sqlite3.Error) as problem:
            raise UserError(f"the store {str(self.path)!r} cannot be opened ({problem}); {STORE_FIX}") from None
        try:
            with database:
                database.execute("PRAGMA synchronous = NORMAL")
                yield database
        except sqlite3.Error as problem:
            raise UserError(f"the store {str(self.path)!r} cannot be used ({problem}); {STORE_FIX}") from None
        finally:
            database.close()


def _size(database: sqlite3.Connection) -> int:
    return int(database.execute("SELECT COALESCE(SUM(LENGTH(logps)), 0) FROM entries").fetchone()[0])
