"""Servers that send what no server should: every such request fails alone, in one line, and the key is nowhere."""

import base64
import functools
import gzip
import json
import threading
import time
import tracemalloc
import zlib
from pathlib import Path
from urllib.parse import quote

import pytest

pytest.importorskip("openai")
pytest.importorskip("pydantic")
pytest.importorskip("tenacity")

from hypothesis import given
from hypothesis import strategies as st
from llm_server import Server, completion, concepts, send, well

from cbm.concepts.llm.body import LARGEST, BodyError, BrokenBody, parse_body, read_completion, token_count
from cbm.concepts.llm.client import AnswerCache, Asker, Endpoint, Request
from cbm.concepts.llm.redact import Redactor, whole

KEY = "sk-CANARY-1234567890/+a"
HALF = "\ud83d"
GOOD = json.dumps(concepts("red cap"))


@functools.cache
def bomb(coding: str) -> bytes:
    """60 MB of an answer in 300 kB, made when it is needed."""
    content = b'{"choices": [{"message": {"content": "' + b"a" * (60 << 20) + b'"}}]}'
    return gzip.compress(content, 1) if coding == "gzip" else zlib.compress(content, 1)


def packed(coding: str, status: int = 200, **headers: str):
    """An action: a bomb."""
    return lambda handler, body: raw(status, bomb(coding), **{"Content_Encoding": coding, **headers})(handler, body)


def raw(status: int, content: bytes | None, **headers: str):
    """An action: these bytes, without end if None."""

    def act(handler, _):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.close_connection = True
        handler.wfile.write(content or b"")
        while content is None:
            handler.wfile.write(b"a" * 65536)

    return act


def with_usage(usage: str, created: str = "1"):
    return raw(200, f'{GOOD[:-1]}, "usage": {usage}, "created": {created}}}'.encode())


def drip(handler, _):
    raw(200, b"")(handler, _)
    for _ in range(1000):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.02)


def escaped(text: str) -> str:
    return "".join(f"\\u{ord(letter):04x}" for letter in text)


FORMS = {
    "plain": KEY, "bearer": f"Bearer {KEY}", "quoted": quote(KEY, safe=""), "escaped": escaped(KEY),
    "json": KEY.replace("/", "\\/"), "upper": KEY.upper(), "base64": base64.b64encode(KEY.encode()).decode(),
    "base64 of more": base64.b64encode(f"Bearer {KEY}".encode()).decode(), "hex": KEY.encode().hex(),
    "html": "".join(f"&#{ord(letter)};" for letter in KEY), "shortened": f"{KEY[:15]}...",
}  # fmt: skip

HOSTILE = {
    "half in content": send(200, completion(f"- red wing {HALF}")),
    "half inside JSON": send(200, completion('{"concepts": ["red \\ud83d wing", "\\udc00"]}')),
    "half in model": send(200, {**concepts("red cap"), "model": f"m{HALF}"}),
    "half in refusal": send(200, completion("", refusal=f"no{HALF}")),
    "half in finish": send(200, completion("- red cap", finish=HALF)),
    "half in a key": send(200, {**concepts("red cap"), HALF: HALF}),
    "half in an error": send(500, {"error": {"message": HALF, "code": HALF}}),
    "half in a refused request": send(422, {"error": {"message": f"content_filter {HALF}"}}),
    "deep": raw(200, b"[" * 100_000 + b"]" * 100_000),
    "deep error": raw(500, b'{"error":' * 100_000),
    "deep inside": raw(200, GOOD[:-1].encode() + b', "a": ' + b"[" * 900 + b"]" * 900 + b"}"),
    "deep answer": send(200, completion("[" * 100_000)),
    "long answer": send(200, completion("- red wing\n" * 300_000)),
    "infinite usage": with_usage('{"prompt_tokens": 1e999, "completion_tokens": NaN}', "1e999"),
    "negative usage": with_usage('{"prompt_tokens": -5, "completion_tokens": -1e300}', "-1"),
    "no number": with_usage('{"prompt_tokens": true, "completion_tokens": "9"}', "true"),
    "huge usage": with_usage(f'{{"prompt_tokens": {10**300}, "completion_tokens": {"9" * 5000}}}', "99999999999"),
    "usage of another kind": with_usage("[1]", '"now"'),
    "choices": raw(200, b'{"choices": {"0": {"message": {"content": "- red"}}}}'),
    "choice": raw(200, b'{"choices": [["message"]]}'),
    "message": raw(200, b'{"choices": [{"message": "- red cap"}]}'),
    "content": raw(200, b'{"choices": [{"message": {"content": {"a": 1}}}], "model": [1]}'),
    "null": raw(200, b"null"),
    "null error": raw(500, b'{"error": null}'),
    "list of errors": raw(422, b'{"error": [1, {"message": 2}]}'),
    "empty": raw(200, b""),
    "no text": raw(200, bytes(range(256))),
    "odd charset": packed("deflate", 500, Content_Encoding="", Content_Type="text/plain; charset=zlib"),
    "gzip bomb": packed("gzip"),
    "gzip bomb of an error": packed("gzip", 500),
    "deflate bomb": packed("deflate"),
    "twice": raw(200, gzip.compress(gzip.compress(bytes(5 << 20))), Content_Encoding="gzip, gzip"),
    "damaged gzip": raw(200, gzip.compress(GOOD.encode())[:-9], Content_Encoding="gzip"),
    "brotli": raw(200, b"\x1b" * 99, Content_Encoding="br"),
    "endless": raw(200, None),
    "endless error": raw(500, None),
    "redirect with a bomb": packed("gzip", 307, Location="/v1/chat/completions"),
    "odd redirect": raw(307, b"", Location="http://[::1"),
    "redirect of another kind": raw(301, b"", Location="/v2"),
    "not modified": raw(304, b""),
    "odd status": raw(999, b"{}"),
    "odd wait": raw(429, b"{}", Retry_After="Fri, 31 Dec 9999999 23:59:59 GMT"),
    "endless headers": raw(500, b"{}", X="a" * 300_000),
    **{f"key in an error, {name}": send(500, {"error": {"message": f"sent {form}"}}) for name, form in FORMS.items()},
    **{f"key in a text, {name}": send(502, f"<html> you sent {form}") for name, form in FORMS.items()},
    **{
        f"key in an answer, {name}": send(200, {
            **completion(f'{{"concepts": ["red cap", "wing {form}"]}}', refusal=None), "model": form, form: form,
        })
        for name, form in FORMS.items() if "\\" not in form
    },
    "key inside JSON": send(200, completion(f'{{"concepts": ["red cap", "wing {escaped(KEY)}"]}}')),
    "key in a refusal": send(200, completion("", refusal=KEY)),
    "key in headers": raw(500, b"{}", Retry_After=KEY, Location=KEY, X=KEY),
}  # fmt: skip


def leaks(text: str) -> bool:
    """Whether the key, or what tells it, is in a text."""
    known = [*FORMS.values(), escaped("CANARY"), "CANARY"]
    return any(form.casefold() in text.casefold() for form in known)


@pytest.fixture
def asker(server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def make(**changes: object) -> Asker:
        settings = {"concurrency": 2, "retries": 0, "first_wait": 0.01, "longest_wait": 0.02, "rewrites": 0}
        return Asker(Endpoint("tiny", server.url, **{**settings, **changes}), AnswerCache(tmp_path / "kept"))

    return make


def about(word: str) -> Request:
    return Request("tiny", "be brief", f'Class "{word}"', "concepts")


@pytest.mark.parametrize("act", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_body_is_that_request_s_failure_and_no_key_is_kept(act, asker, server, tmp_path: Path):
    good = about("cat")
    server.always = lambda handler, body: (act if '"evil"' in body["messages"][1]["content"] else well)(handler, body)
    found = asker(concurrency=1)
    answers = found.ask([good, about("evil"), about("dog")])
    assert {good.hash, about("dog").hash} <= set(answers)
    assert len(answers) + len(found.tally.failures) == 3
    assert all("\n" not in why and len(why) < 400 for why in found.tally.failures.values())
    assert 0 <= found.tally.prompt_tokens <= 300
    assert 0 <= found.tally.completion_tokens <= 60
    kept = "".join(file.read_text() for file in (tmp_path / "kept").rglob("*.json"))
    assert not leaks(kept + str(found.tally) + str(answers))
    again = asker().ask([good, about("evil"), about("dog")])
    assert {**again, **answers} == again


def test_a_bomb_takes_no_memory(asker, server):
    for coding in ("gzip", "deflate"):
        bomb(coding)
        server.always = packed(coding)
        found = asker()
        tracemalloc.start()
        try:
            assert found.ask([about("cat")]) == {}
            assert tracemalloc.get_traced_memory()[1] < 20 << 20
        finally:
            tracemalloc.stop()
        assert "larger than 4 MB" in found.tally.failures[about("cat").hash]


def test_compressed_answers_are_read(asker, server):
    bare = zlib.compressobj(wbits=-15)
    text = GOOD.encode()
    for number, (content, coding) in enumerate([
        (gzip.compress(text), "gzip"), (gzip.compress(text[:9]) + gzip.compress(text[9:]), "x-gzip"),
        (zlib.compress(text), "deflate"), (bare.compress(text) + bare.flush(), "deflate"), (text, "identity"),
    ]):  # fmt: skip
        server.always = raw(200, content, Content_Encoding=coding)
        assert asker().ask([about(f"w{number}")])[about(f"w{number}").hash].items[0].text == "red cap"


def test_a_slow_drip_ends_in_time(asker, server):
    server.always = drip
    found = asker(timeout=0.5)
    assert found.ask([about("cat")]) == {}
    assert found.tally.failures == {about("cat").hash: "no answer in 0.5 s"}


def test_a_name_that_changes_with_every_request_is_not_followed_for_ever(asker, server):
    def act(handler, body):
        name = next(each for each in body if each not in ("messages", "model", "response_format"))
        message = f"Unsupported parameter: '{name}'. Use 'max{len(server.bodies)}' instead."
        send(422, {"error": {"message": message, "param": name}})(handler, body)

    server.always = act
    asked = Request("tiny", "be brief", "Class", "concepts", max_tokens=9)
    with pytest.raises(Exception, match="does not accept the request"):
        asker().ask([asked])
    assert len(server.bodies) < 10


def test_whatever_is_raised_is_one_request_s_failure(asker, server, monkeypatch: pytest.MonkeyPatch):
    from cbm.concepts.llm import client

    read = client.read_answer
    for error in (TypeError("x"), OverflowError(KEY), RecursionError(), UnicodeError("x"), ZeroDivisionError()):

        def broken(text: str, *rest: object, error: Exception = error, **named: object):
            if "evil" in text:
                raise error
            return read(text, *rest, **named)

        monkeypatch.setattr(client, "read_answer", broken)
        found = asker()
        answers = found.ask([about("evil"), about("cat"), about(type(error).__name__)])
        assert len(answers) == 2
        assert found.tally.failures[about("evil").hash].startswith(type(error).__name__)
        assert not leaks(str(found.tally))


def test_the_command_leaves_no_key_anywhere(module, server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_LOG", "debug")
    arguments = ("--out", "bank", "--classes", "names.txt", "--model", "tiny", "--base-url", server.url, "--prompts",
                 "labo", "--concurrency", "2", "--retries", "0")  # fmt: skip
    server.script = [act for name, act in HOSTILE.items() if "key" in name and "answer" in name][:3]
    server.script += [send(500, {"error": {"message": f"no {form}"}}) for form in list(FORMS.values())[:1]]
    server.script += [send(200, completion(f"- red wing {HALF} {KEY}")), well]
    status, out, errors = module(*arguments, "--skip-failed")
    assert status == 0, errors
    record = json.loads((tmp_path / "bank" / "generation.json").read_text())
    assert record["counts"]["failed"] == 1
    assert "[key]" in next(iter(record["failures"].values()))
    server.always = send(401, {"error": {"message": f"Incorrect key: {KEY}"}})
    status, more_out, more_errors = module(*arguments[2:], "--out", "other", "--samples", "2")
    assert status == 2
    assert "[key]" in more_errors
    said = out + errors + more_out + more_errors
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 8
    assert not any(leaks(file.read_bytes().decode(errors="replace")) for file in files)
    assert not leaks(said)
    assert "Traceback" not in said


@given(st.text(), st.text())
def test_redacting_keeps_everything_else(before: str, after: str):
    clean = Redactor([KEY])
    text = clean(f"{before} {KEY} {after}")
    assert KEY not in text
    assert "[key]" in text
    assert clean(before) == whole(before) or leaks(before)


@pytest.mark.parametrize("key", ["x", "not-needed", "EMPTY", "token", "anything", "lm-studio", ""])
def test_keys_that_are_no_secret_leave_text_alone(key: str):
    text = f"a wing, an extra token: {key} is anything but EMPTY, not-needed, {key}"
    assert Redactor([key])(text) == text


def test_a_short_key_is_taken_out_where_it_is_one():
    assert Redactor(["abc"])("Authorization: Bearer abc, abcd") == "Authorization: Bearer [key], abcd"


def test_a_password_in_the_address_is_a_secret(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    endpoint = Endpoint("m", "https://me:hunter%2F22@host.org/v1?api_key=0123456789abc")
    clean = Redactor(endpoint.secrets())
    coded = base64.b64encode(b"me:hunter/22").decode()
    for text in ("hunter/22", "hunter%2F22", "me:hunter/22", f"Basic {coded}", "?api_key=0123456789abc"):
        assert clean(text).replace("?api_key=", "") in ("[key]", "Basic [key]")
    assert endpoint.headers()["Authorization"] == f"Basic {coded}"
    assert "hunter" not in endpoint.chat_url
    assert endpoint.chat_url == "https://host.org/v1/chat/completions?api_key=0123456789abc"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner) |
    st.dictionaries(st.sampled_from(["choices", "message", "content", "usage", "created", "model", "refusal", "type",
                                     "prompt_tokens", "text"]), inner), max_leaves=12,
)  # fmt: skip


@given(json_values)
def test_any_json_is_a_completion_or_none(value):
    body = parse_body(json.dumps({"choices": [{"message": value}], "usage": value, "created": value}).encode(), whole)
    try:
        found = read_completion(body)
    except BrokenBody:
        return
    assert type(found.prompt_tokens) is type(found.completion_tokens) is int
    assert min(found.prompt_tokens, found.completion_tokens) >= 0
    (found.text + found.refusal + found.finish + found.model).encode()


def test_counts_of_tokens():
    right = {0: 0, 12: 12, 3.0: 3}
    assert {value: token_count(value) for value in right} == right
    wrong = (True, -1, 10**9, float("inf"), float("nan"), None, "3", [])
    assert [token_count(value) for value in wrong] == [0] * len(wrong)


def test_a_text_that_is_too_long_is_refused():
    with pytest.raises(BodyError, match="more than 200,000 letters"):
        parse_body(json.dumps(["a" * 200_001]).encode(), whole)
    assert LARGEST == 4 << 20


@pytest.fixture
def other():
    found = Server()
    yield found
    found.http.shutdown()
    found.http.server_close()


def headers_of(server: Server) -> list[dict[str, str]]:
    """The headers of all requests from now on."""
    seen: list[dict[str, str]] = []
    answer = server.always or well

    def act(handler, body):
        seen.append({name.lower(): value for name, value in handler.headers.items()})
        answer(handler, body)

    server.always = act
    return seen


@pytest.mark.parametrize("status", [307, 308])
def test_the_key_does_not_follow_to_another_server(asker, server, other, status: int):
    for place in (other.url, other.url.replace("127.0.0.1", "localhost")):
        other.always = None
        seen = headers_of(other)
        server.always = raw(status, b"", Location=f"{place}/chat/completions?k={KEY}")
        found = asker()
        answer = found.ask([about(f"{place} {status}")])
        assert "authorization" not in seen[0]
        assert next(iter(answer.values())).host == place
    server.always = None
    seen = headers_of(server)
    server.script = [raw(status, b"", Location="/elsewhere/chat/completions")]
    assert len(asker().ask([about(f"here {status}")])) == 1
    assert seen[0]["authorization"] == f"Bearer {KEY}"


def test_a_circle_of_redirects_ends(asker, server):
    server.always = raw(307, b"", Location="/v1/chat/completions")
    found = asker(retries=3)
    assert found.ask([about("cat")]) == {}
    assert "from one address to the next" in found.tally.failures[about("cat").hash]
    assert len(server.bodies) == 5


def test_nothing_but_our_own_headers_is_sent(asker, server, monkeypatch: pytest.MonkeyPatch):
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY", "OPENAI_CUSTOM_HEADERS"):
        monkeypatch.setenv(name, f"X-{name}: secret")
    seen = headers_of(server)
    assert len(asker().ask([about("cat")])) == 1
    assert set(seen[0]) == {
        "accept", "accept-encoding", "authorization", "content-length", "content-type", "host", "user-agent",
    }  # fmt: skip
    assert "OpenAI-Project" in Endpoint("m").headers()
    assert "OpenAI-Project" not in Endpoint("m", "https://api.openai.com.example.org/v1").headers()


def test_many_hostile_answers_at_once(asker, server):
    """None of them stops another; those in flight are all done."""
    acts = [act for name, act in HOSTILE.items() if "half" in name or "usage" in name]
    lock, todo = threading.Lock(), list(acts)

    def act(handler, body):
        with lock:
            one = todo.pop() if todo else well
        one(handler, body)

    server.always = act
    found = asker(concurrency=40)
    answers = found.ask([about(f"w{number}") for number in range(len(acts) + 9)])
    assert len(answers) + len(found.tally.failures) == len(acts) + 9
    assert len(answers) >= 9
