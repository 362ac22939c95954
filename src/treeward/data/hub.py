"""The hub: which names mean it, whether it can be reached, and the data sets that lie there.

Nothing here is used unless the user has named a hub id.
"""

import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from huggingface_hub import constants

from treeward.data.files import BATCH, Piece, Row
from treeward.errors import UserError

ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def is_id(name: str) -> bool:
    """Whether a name that is no path on this machine can be a hub id: NAME or OWNER/NAME.

    OWNER/NAME is taken for a path where OWNER is a directory here: a mistyped path must not be sent to the hub.
    """
    owner, slash, _ = name.partition("/")
    return bool(ID.fullmatch(name)) and not (slash and Path(owner).is_dir())


def reachable() -> bool:
    """Whether the hub's name resolves, or a proxy will have to do that; False in offline mode.

    Without this look-up a closed network costs a minute of retries before the same answer.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True
    host = urlparse(constants.ENDPOINT).hostname or ""
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def pieces(name: str, option: str) -> Mapping[str, Sequence[Piece]]:
    """The splits of a data set on the hub, or of its copy in the cache, read by the `datasets` library.

    Raises:
        UserError: it cannot be had, in one line with the fix.
    """
    datasets: Any = import_module("datasets")
    if not reachable():
        datasets.config.HF_HUB_OFFLINE = True
    datasets.disable_progress_bars()
    logger = logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        loaded = datasets.load_dataset(name)
    except (ValueError, OSError, RuntimeError, LookupError, TypeError, datasets.exceptions.DatasetsError) as problem:
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise UserError(
            f"{option} {name!r} cannot be read ({reason[:160]}); without a network give a local file or 'world'"
        ) from None
    finally:
        logger.setLevel(level)
    return {split: [_piece(part)] for split, part in loaded.items()}


def _piece(part: Any) -> Piece:
    table = part.with_format("arrow")

    def read() -> Iterator[Row]:
        for start in range(0, len(table), BATCH):
            yield from table[start : start + BATCH].to_pylist()

    return Piece("", read)
