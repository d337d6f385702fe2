"""Every reader on damaged, odd and hostile files: one line for the user or a valid result, and nothing else, ever.

``CBM_FUZZ=2000 pytest tests/trust/test_fuzz.py`` tries other and more files (25 of every kind by default, the same).
"""

import io
import json
import os
import re
import resource
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import scipy.io
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trust.readable_files import READABLE

from cbm.errors import UserError

EXAMPLES = int(os.environ.get("CBM_FUZZ", 25))
SECONDS, MEMORY = 30, 3 << 29
"""What a small file may take, at most: half a minute, and a gigabyte and a half besides what is taken already."""
LINUX = sys.platform == "linux"
ODD = [
    b"", b"-1", b"0", b"2", b"1e999", b"NaN", b".nan", b"9" * 400, b"9" * 5000, b"\x00", b"\xff\xfe", "é".encode(),
    b"../../../etc/passwd", b"/etc/passwd", b"a" * 300, b"null", b"~", b"[]", b"{}", b'"\\ud800"', b"*a", b"&a [*a]",
    b"!!python/object/apply:os.system ['true']", b"!!timestamp x", b"2001-99-99", b"0b", b"True", b"\r", b"\n", b",",
    b'"', b"\t", b": ", b"- ", b"${oc.env:HOME}", b"???", "\u0663".encode(), "\u00b2".encode(),
]  # fmt: skip
DEEP = [b"[" * 100_000, b'{"a":' * 20_000, b"- " * 3_000, b"{a: " * 3_000, b"(" * 3_000]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged(draw: st.DrawFn, valid: bytes, name: str) -> bytes:
    """A file that was ``valid`` once, or never."""
    kinds = ["noise", "text", "flip", "cut", "splice", "repeat", "token", "token", "deep", "utf16"]
    kind = draw(st.sampled_from(kinds + ["tree"] * 4 * name.endswith((".json", ".yaml"))))
    place = st.integers(0, len(valid))
    if kind == "noise":
        return draw(st.binary(max_size=300))
    if kind == "text":
        return draw(st.text(max_size=100)).encode(errors="surrogatepass")
    if kind == "flip":
        content = bytearray(valid)
        for position in draw(st.lists(st.integers(0, len(valid) - 1), min_size=1, max_size=4)):
            content[position] ^= 1 << draw(st.integers(0, 7))
        return bytes(content)
    if kind == "cut":
        return valid[: draw(place)]
    if kind == "splice":
        start, end = sorted((draw(place), draw(place)))
        return valid[:start] + draw(st.sampled_from(ODD) | st.binary(max_size=8)) + valid[end:]
    if kind == "repeat":
        start, end = sorted((draw(place), draw(place)))
        return valid[:end] + valid[start:end] * draw(st.integers(1, 3)) + valid[end:]
    if kind == "token":
        words = list(re.finditer(rb"[^\s,:\"\[\]{}]+", valid))
        for word in sorted(draw(st.lists(st.sampled_from(words), min_size=1, max_size=2)), key=lambda w: -w.start()):
            valid = valid[: word.start()] + draw(st.sampled_from(ODD)) + valid[word.end() :]
        return valid
    if kind == "deep":
        return draw(st.sampled_from(DEEP))
    if kind == "utf16":
        return valid.decode("latin-1").encode("utf-16")
    content = yaml.safe_load(valid)  # JSON is YAML
    for _ in range(draw(st.integers(1, 2))):
        content = draw(replaced(content))
    return (json.dumps(content) if name.endswith(".json") else yaml.safe_dump(content)).encode()


@st.composite
def replaced(draw: st.DrawFn, content: object) -> object:
    """A tree of which one branch is another, or gone."""
    if not isinstance(content, dict | list) or not content or draw(st.integers(0, 4)) == 0:
        return draw(VALUES)
    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    key = draw(st.sampled_from(keys))
    changed = content.copy()
    if draw(st.integers(0, 4)) == 0:
        del changed[key]
    else:
        changed[key] = draw(replaced(content[key]))
    return changed


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class TooLong(BaseException):
    """A reader did not come back."""


@contextmanager
def soon_and_small() -> Iterator[None]:
    """What is inside ends within ``SECONDS``, and is given no more than ``MEMORY`` (where the system has limits)."""

    def stop(*_: object) -> None:
        raise TooLong

    before, old = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, stop)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if LINUX else None
    try:
        signal.alarm(SECONDS)
        if used is not None:
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("kind", READABLE)
def test_valid_files_are_read(kind: str, tmp_path: Path):
    """The table is right: what is damaged below is read as it is."""
    READABLE[kind].write(tmp_path)
    with quiet():
        READABLE[kind].read(tmp_path)


NO_TABLE = io.BytesIO()
scipy.io.savemat(NO_TABLE, {"synsets": 1.0})
HUGE = b"1" + b"0" * 400
FOUND = {
    "card": ("mine.yaml", b"about: true\nname: mine\nreader: csv\nroot: /pictures\n"),
    "our bank": ("bank.json", b'{"concepts": [{"text": "red belly"}], "dropped": true}'),
    "bank of a language model": ("b.json", b'{"owl": [["a beak", ' + HUGE + b"]]}"),
    "conceptnet": ("c.csv", b'/a/x\t/r/HasA\t/c/en/bird\t/c/en/wing\t{"weight": ' + HUGE + b"}\n"),
    "wordnet": ("data.noun", b"00000000 03 n 01 animal 0 " + HUGE + b" | a living thing\n"),
    "imagenet-devkit": ("ILSVRC2012_devkit_t12/data/meta.mat", NO_TABLE.getvalue()),
    "state of a run": ("state.json", b'{"settings": "0", "finished": true, "checksums": ' + HUGE + b"}"),
}
"""Files at which readers failed once, with something else than a line for the user."""


@pytest.mark.parametrize("kind", FOUND)
def test_what_fuzzing_found(kind: str, tmp_path: Path):
    READABLE[kind].write(tmp_path)
    name, content = FOUND[kind]
    (tmp_path / name).write_bytes(content)
    with quiet(), pytest.raises(UserError):
        READABLE[kind].read(tmp_path)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, each in READABLE.items() for name in each.files])
def test_one_line_or_a_result(kind: str, name: str, tmp_path: Path):
    READABLE[kind].write(tmp_path)
    valid, messages = (tmp_path / name).read_bytes(), []

    @settings(
        max_examples=EXAMPLES, deadline=None, derandomize="CBM_FUZZ" not in os.environ, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(damaged(valid, name))
    def attempt(content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        try:
            with quiet(), soon_and_small():
                READABLE[kind].read(tmp_path)
        except UserError as error:
            messages.append(str(error))

    attempt()
    assert all(10 < len(message) < 1000 and "\n" not in message for message in messages)
