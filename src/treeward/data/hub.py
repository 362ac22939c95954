"""Whether the hub can be reached; asked only when the user has named a hub id.

Without this look-up a closed network costs a minute of retries before the same answer.
"""

import os
import socket
from urllib.parse import urlparse

from huggingface_hub import constants


def reachable() -> bool:
    """Whether the hub's name resolves, or a proxy will have to do that; False in offline mode."""
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
