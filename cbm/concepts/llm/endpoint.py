"""Who is asked: an OpenAI-compatible server, what it is told about us, and what may be spent there."""

import base64
import ipaddress
import os
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit, urlunsplit

from cbm.concepts.llm.budget import Budget
from cbm.concepts.llm.redact import MADE_UP
from cbm.errors import UserError

HOSTED = "https://api.openai.com/v1"


@dataclass(frozen=True)
class Endpoint:
    """Who is asked, and how patiently.

    Attributes:
        model: the model's name there.
        base_url: ends in ``/v1`` as a rule; None is OPENAI_BASE_URL, else OpenAI.
        concurrency: requests in flight.
        timeout: seconds for one answer.
        retries: further tries after a passing failure (429, 5xx, no connection, broken body).
        first_wait: seconds before the first retry; doubles each time.
        longest_wait: no wait is longer, whatever Retry-After says.
        rewrites: further tries after an answer that is not of the schema.
        max_requests: HTTP requests of a run, retries and rewrites too; None is no limit.
        max_cost_tokens: tokens of prompts and answers of a run; None is no limit.
        allow_http: whether a key may go to another machine unencrypted.
    """

    model: str
    base_url: str | None = None
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 6
    first_wait: float = 0.5
    longest_wait: float = 60.0
    rewrites: int = 2
    max_requests: int | None = None
    max_cost_tokens: int | None = None
    allow_http: bool = False

    @property
    def url(self) -> str:
        """The URL that is asked."""
        return (self.base_url or os.environ.get("OPENAI_BASE_URL") or HOSTED).strip()

    @property
    def chat_url(self) -> str:
        """The URL that questions are sent to, without user and password: they are in ``authorization``."""
        parts = urlsplit(self.url)
        where = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, where, f"{parts.path.rstrip('/')}/chat/completions", parts.query, ""))

    @property
    def host(self) -> str:
        """Scheme, host, port and path: no user, password or query, so that it may be written down."""
        return host_of(self.url)

    @property
    def local(self) -> bool:
        """Whether it is this machine or its network, where servers want no key."""
        return is_local(urlsplit(self.url).hostname or "")

    @property
    def private(self) -> bool:
        """Whether nobody on the way can read what is sent: it is encrypted, or does not leave this machine."""
        return is_private(self.url)

    def check(self) -> None:
        """Refuse settings that cannot work.

        Raises:
            UserError: names the option.
        """
        for option, value, least in (("concurrency", self.concurrency, 1), ("retries", self.retries, 0)):
            if value < least:
                raise UserError(f"--{option} {value}: expected {least} or more")
        if not self.timeout > 0:
            raise UserError(f"--timeout {self.timeout}: expected seconds above 0")
        self.budget().check()
        try:
            parts = urlsplit(self.url)
            good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            good = good and self.url.isprintable() and not set(self.url) & set("\\ <>")
        except ValueError:
            good = False
        if not good:
            option = "--base-url" if self.base_url else "OPENAI_BASE_URL"
            raise UserError(f"{option}: expected a URL such as http://localhost:8000/v1")

    def budget(self) -> Budget:
        """A new budget, of which nothing is used."""
        return Budget(self.max_requests, self.max_cost_tokens)

    def key(self) -> str:
        """The key from the environment; a server that wants none (local, or with a password in its URL) gets a made-up
        one.

        Raises:
            UserError: a hosted model and no key, a key that cannot be sent, or one that others could read on the way.
        """
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        password = bool(_user_and_password(urlsplit(self.url)))
        if not self.private and not self.allow_http and (password or key):
            what, instead = ("OPENAI_API_KEY", "unset OPENAI_API_KEY if the server wants none")
            if password:
                what, instead = ("the password in the server's URL", "leave it out if the server wants none")
            raise UserError(
                f"{what} would go to {self.host} unencrypted, where others can read it: {instead}, use https, or say "
                "--allow-http"
            )
        if not key and not password and not self.local:
            raise UserError(f"{self.host} wants a key: set the environment variable OPENAI_API_KEY")
        if odd := next((n for n, letter in enumerate(key, 1) if not "!" <= letter <= "~"), 0):
            raise UserError(f"OPENAI_API_KEY cannot be sent: letter {odd} of {len(key)} is none that a key has")
        return key or MADE_UP

    def headers(self) -> dict[str, str]:
        """All that a server is told beside the question. Only OpenAI is told an organisation and a project.

        Raises:
            UserError: as ``key``.
        """
        known = _user_and_password(urlsplit(self.url))
        key = self.key()
        sent = {
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "Authorization": f"Basic {base64.b64encode(known.encode()).decode()}" if known else f"Bearer {key}",
            "Content-Type": "application/json",
            "User-Agent": "cbm",
        }
        if urlsplit(self.url).hostname == urlsplit(HOSTED).hostname:
            for name, variable in (("OpenAI-Organization", "OPENAI_ORG_ID"), ("OpenAI-Project", "OPENAI_PROJECT_ID")):
                if (value := os.environ.get(variable, "").strip()).isascii() and value.isprintable() and value:
                    sent[name] = value
        return sent

    def secrets(self) -> list[str]:
        """What must never be written down: the key, and a password or key in the URL."""
        parts = urlsplit(self.url)
        known = _user_and_password(parts)
        found = [os.environ.get("OPENAI_API_KEY", "").strip(), known, known.partition(":")[2]]
        if known.endswith(":"):  # a token in the place of the user
            found.append(known[:-1])
        words = ("key", "token", "secret", "sig", "pass", "auth", "code")
        found += [value for name, value in parse_qsl(parts.query) if any(word in name.casefold() for word in words)]
        return [secret for secret in found if secret]


def _user_and_password(parts: SplitResult) -> str:
    """``user:password`` of a URL, or empty."""
    if not parts.username and not parts.password:
        return ""
    return f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"


def host_of(url: str) -> str:
    """Scheme, host, port and path of a URL: no user, password or query."""
    parts = urlsplit(url)
    name = parts.hostname or ""
    name = f"[{name}]" if ":" in name else name
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{name}{port}{parts.path}"


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address that a host's name is, or None for a word."""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_local(name: str) -> bool:
    """Whether a host is this machine or on its network."""
    if (address := _address(name)) is None:
        return name == "localhost" or "." not in name or name.endswith((".local", ".localhost"))
    return address.is_loopback or address.is_private or address.is_unspecified


def is_private(url: str) -> bool:
    """Whether what is sent to a URL is encrypted, or does not leave this machine."""
    parts = urlsplit(url)
    address = _address(parts.hostname or "")
    here = parts.hostname == "localhost" if address is None else address.is_loopback or address.is_unspecified
    return parts.scheme == "https" or here
