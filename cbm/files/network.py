"""The hub of models: whether it can be reached, and which errors mean that it cannot."""

import contextlib
import os
import socket
import threading
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


def hub_state(seconds: float = 3.0) -> str:
    """Whether the hub of models answers, in words that begin with yes, no or offline; never an error.

    Args:
        seconds: how long to wait.
    """
    import http.client
    import urllib.error
    import urllib.request

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "offline: HF_HUB_OFFLINE is set, models come from what was downloaded"
    answers: list[str] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(endpoint, method="HEAD")
            with urllib.request.urlopen(request, timeout=seconds):
                answers.append(f"yes: {endpoint}")
        except urllib.error.HTTPError as error:  # it does answer
            answers.append(f"yes: {endpoint} (it says {error.code})")
        except (OSError, ValueError, http.client.HTTPException) as error:
            answers.append(f"no: {endpoint} ({' '.join(str(getattr(error, 'reason', error)).split())[:100]})")

    thread = threading.Thread(target=ask, daemon=True)  # looking up a name has no time limit of its own
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else f"no: {endpoint} does not answer within {seconds:g} seconds"
