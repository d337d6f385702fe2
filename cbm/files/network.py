"""The hub of models: whether it can be reached, and which errors mean that it cannot."""

import contextlib
import socket
from urllib.parse import urlsplit


@contextlib.contextmanager
def offline_if_unreachable():
    """Without a network the hub client would retry for most of a minute; tell it to look in its cache only."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def is_network_error(error: BaseException | None) -> bool:
    """Whether an exception, or one behind it, says that something could not be reached."""
    words = ("Connection", "URLError", "Timeout", "LocalEntryNotFound", "OfflineMode", "gaierror", "HTTPError", "Proxy")
    while error is not None:
        if any(word in kind.__name__ for kind in type(error).__mro__ for word in words):
            return True
        error = error.__cause__ or error.__context__
    return False
