"""Where a key may go, what a run may cost, and which kept answers count."""

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("openai")
pytest.importorskip("pydantic")
pytest.importorskip("tenacity")

from llm_server import completion, concepts, send, well

from cbm.concepts.llm.answers import Item
from cbm.concepts.llm.client import Answer, AnswerCache, Asker, Endpoint, Request
from cbm.errors import UserError

KEY = "sk-CANARY-1234567890"
ERROR = {"error": {"message": "no", "type": "x"}}


def about(word: str, **changes: object) -> Request:
    return Request("tiny", "be brief", f'Class "{word}"', "concepts", **changes)


@pytest.fixture
def asker(server, tmp_path: Path):
    def make(**changes: object) -> Asker:
        settings = {"concurrency": 1, "retries": 0, "first_wait": 0.01, "longest_wait": 0.02}
        return Asker(Endpoint("tiny", server.url, **{**settings, **changes}), AnswerCache(tmp_path / "kept"))

    return make


OTHERS = ("http://192.168.1.5:8000/v1", "http://gpu/v1", "http://gpu.local:8000/v1", "http://example.org/v1",
          "http://[fe80::1]/v1", "http://10.0.0.1/v1", "http://localhost.example.org/v1", "http://a.localhost/v1",
          "http://localhost@example.org/v1", "http://127.0.0.1.example.org/v1", "http://127.1/v1",
          "http://2130706433/v1", "HTTP://example.org/v1")  # fmt: skip
HERE = ("http://localhost:8000/v1", "http://127.0.0.1/v1", "http://127.9.9.9/v1", "http://[::1]:99/v1",
        "http://[::ffff:127.0.0.1]/v1", "http://0.0.0.0:8000/v1", "http://LOCALHOST/v1")  # fmt: skip
ENCRYPTED = ("https://example.org/v1", "https://192.168.1.5/v1", "HTTPS://gpu/v1")


@pytest.mark.parametrize("by", ["option", "environment"])
def test_the_key_goes_over_https_or_to_this_machine(monkeypatch: pytest.MonkeyPatch, by: str):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def endpoint(url: str, **changes: object) -> Endpoint:
        monkeypatch.setenv("OPENAI_BASE_URL", url if by == "environment" else "https://api.openai.com/v1")
        return Endpoint("m", None if by == "environment" else url, **changes)

    for url in OTHERS:
        with pytest.raises(UserError, match=r"would go to http://.* unencrypted.*--allow-http"):
            endpoint(url).key()
        assert endpoint(url, allow_http=True).key() == KEY
    with pytest.raises(UserError, match="OPENAI_API_KEY would go to http://gpu/v1 .*: unset OPENAI_API_KEY if"):
        endpoint("http://gpu/v1").key()
    for url in (*HERE, *ENCRYPTED):
        endpoint(url).check()
        assert endpoint(url).headers()["Authorization"] == f"Bearer {KEY}"


def test_without_a_key_a_local_server_is_asked_over_http(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for url in ("http://192.168.1.5:8000/v1", "http://gpu/v1", "http://gpu.local/v1", *HERE):
        assert Endpoint("m", url).key() == "not-needed"
    with pytest.raises(UserError, match="wants a key"):
        Endpoint("m", "http://example.org/v1").key()
    with pytest.raises(UserError, match="the password in the server's URL would go to http://example.org/v1 unenc"):
        Endpoint("m", "http://me:secret@example.org/v1").key()
    assert Endpoint("m", "https://me:secret@example.org/v1").key() == "not-needed"


@pytest.mark.parametrize("key", ["sk-a\nb: c", "sk-\u2026", "sk a", "sk-\x7f"])
def test_a_key_that_cannot_be_sent_is_one_line_without_it(monkeypatch: pytest.MonkeyPatch, key: str):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match=r"^OPENAI_API_KEY cannot be sent: letter \d of \d is none that a key has$"):
        Endpoint("m").key()


@pytest.mark.parametrize("url", ["http://a b/v1", "http://evil.org\\@localhost/v1", "http://a\tb/v1", "http://", "x"])
def test_addresses_that_are_read_in_two_ways_are_refused(url: str):
    with pytest.raises(UserError, match="--base-url: expected a URL"):
        Endpoint("m", url).check()


def test_the_command_refuses_to_send_a_key_unencrypted(module, server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    arguments = ("--out", "bank", "--classes", "names.txt", "--model", "tiny")
    status, _, errors = module(*arguments, "--base-url", "http://gpu.local:8000/v1")
    assert status == 2
    assert errors.splitlines()[-1].startswith("error: OPENAI_API_KEY would go to http://gpu.local:8000/v1 unencrypted")
    assert KEY not in errors


def test_retries_and_rewrites_count(asker, server):
    server.script = [send(500, ERROR), send(200, completion("")), send(500, ERROR)]
    found = asker(max_requests=3, retries=5)
    assert found.ask([about("cat"), about("dog")]) == {}
    assert len(server.bodies) == found.budget.sent == 3
    assert (found.tally.not_asked, found.tally.failures) == (2, {})
    line = found.budget.used(0, 2, found.tally.stopped)
    assert line.startswith("the budget of 3 requests is used: 0 of 2 questions are answered and kept; run the same")
    assert "status 500" in line
    assert "\n" not in line


def test_other_names_of_parameters_count(asker, server):
    message = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    server.script = [send(400, {"error": {"message": message, "param": "max_tokens"}})]
    found = asker(max_requests=2)
    assert len(found.ask([about(word, max_tokens=9) for word in ("cat", "dog")])) == 1
    assert len(server.bodies) == found.budget.sent == 2


@pytest.mark.parametrize("concurrency", [1, 8])
@pytest.mark.parametrize("budget", [1, 5, 12])
def test_a_budget_of_requests_is_never_passed(asker, server, concurrency: int, budget: int):
    found = asker(max_requests=budget, concurrency=concurrency)
    asked = [about(f"w{n}") for n in range(12)]
    assert len(found.ask(asked)) == len(server.bodies) == budget
    assert found.tally.not_asked == 12 - budget
    assert (found.tally.stopped is None) == (budget == 12)
    rest = asker(concurrency=concurrency)
    assert len(rest.ask(asked)) == len(server.bodies) == 12


def test_a_budget_of_tokens(asker, server):
    """100 tokens of a question and 20 of an answer, as the server counts; the question is known before it is sent."""
    asked = [about(f"w{n}") for n in range(9)]
    found = asker(max_cost_tokens=360)
    assert len(found.ask(asked)) == 3
    assert found.budget.spent == 360
    assert found.budget.used(3, 9).startswith("the budget of 360 tokens is used: 3 of 9")
    assert "--max-cost-tokens" in found.budget.used(3, 9)
    many = asker(max_cost_tokens=240, concurrency=4)
    assert 2 <= len(many.ask(asked)) - many.tally.cached <= 5  # those in flight may pass it


@pytest.mark.parametrize(
    "usage", [{}, {"prompt_tokens": 0, "completion_tokens": 0}, {"prompt_tokens": -9, "completion_tokens": True},
              {"prompt_tokens": 10**40, "completion_tokens": "1"}, None],
)  # fmt: skip
def test_a_server_that_does_not_count_is_counted_by_letters(asker, server, usage):
    server.always = send(200, {**concepts("red cap"), "usage": usage})
    found = asker(max_cost_tokens=1000)
    assert 1 < len(found.ask([about(f"w{n}") for n in range(100)])) < 50
    assert found.tally.stopped is not None
    assert found.budget.spent <= 1100


def test_the_command_stops_at_its_budget_and_goes_on(module, server, tmp_path: Path):
    arguments = ("--out", "bank", "--classes", "names.txt", "--model", "tiny", "--base-url", server.url,
                 "--prompts", "labo", "--concurrency", "3")  # fmt: skip
    status, _, errors = module(*arguments, "--max-requests", "4", "--skip-failed")
    assert status == 2
    assert errors.splitlines()[-1] == (
        "error: the budget of 4 requests is used: 4 of 10 questions are answered and kept; run the same command again "
        "with a higher --max-requests, it asks only for the rest"
    )
    assert not (tmp_path / "bank").exists()
    status, _, errors = module(*arguments, "--max-cost-tokens", "150", "--concurrency", "1")
    assert status == 2
    assert "the budget of 150 tokens is used: 5 of 10 questions" in errors.splitlines()[-1]
    status, _, errors = module(*arguments, "--max-requests", "5")
    assert status == 0, errors
    assert len(server.bodies) == 10
    for option in ("--max-requests", "--max-cost-tokens"):
        status, _, errors = module(*arguments[2:], "--out", "other", option, "0")
        assert (status, errors.splitlines()[-1]) == (2, f"error: {option} 0: expected 1 or more")


def test_splitting_sentences_is_part_of_the_budget(module, server, tmp_path: Path):
    server.always = send(200, concepts("It has a bright red cap on its head and a long forked tail"))
    arguments = ("--out", "bank", "--classes", "names.txt", "--model", "tiny", "--base-url", server.url,
                 "--prompts", "descriptions", "--max-requests", "2")  # fmt: skip
    status, _, errors = module(*arguments)
    assert status == 2
    assert "the budget of 2 requests is used: 2 of 3 questions" in errors
    assert len(server.bodies) == 2


def good_answer() -> dict:
    return {
        "items": [["red cap", None, 0]], "status": "ok", "text": '{"concepts": ["red cap"]}', "model": "m",
        "date": "2026-01-02T03:04:05+00:00", "prompt_tokens": 1, "completion_tokens": 2, "host": "https://h/v1",
    }  # fmt: skip


ODD = [None, 5, True, 1.5, [], {}, "x" * 300_000, "\x00", -1, 10**30, ["a"], [["a", 1, 0]], "", float("nan")]


@pytest.mark.parametrize("field", list(good_answer()))
def test_every_field_of_a_kept_answer_is_checked(tmp_path: Path, field: str):
    cache, request = AnswerCache(tmp_path), about("cat")
    file = cache.file(request)
    file.parent.mkdir(parents=True)

    def get(content: object) -> Answer | None:
        file.write_text(json.dumps(content))
        return cache.get(request)

    assert get({"answer": good_answer()}).items == (Item("red cap"),)
    for odd in ODD:
        answer = get({"answer": {**good_answer(), field: odd}})
        if answer is not None:
            assert isinstance(odd, str) or (field == "items" and odd == []) or ("tokens" in field and odd == 5)
            assert field != "date"
            assert field != "status"
    without = {name: value for name, value in good_answer().items() if name != field}
    assert (get({"answer": without}) is not None) == (field in ("host", "prompt_tokens", "completion_tokens"))
    assert get({"answer": {**good_answer(), "more": 1}}) is None


@pytest.mark.parametrize(
    ("date", "good"),
    [("2026", True), ("2026-01", True), ("2026-01-31", True), ("2026-01-31T10:00:00Z", True), ("2026-02-31", False),
     ("yesterday", False), ("2026-01-31T25:00:00Z", False), ("２０２６", False), ("0000", False)],
)  # fmt: skip
def test_dates(tmp_path: Path, date: str, good: bool):
    cache, request = AnswerCache(tmp_path), about("cat")
    cache.put(request, Answer((Item("red cap"),), "ok", "red cap", "m", date))
    assert (cache.get(request) is not None) == good


def test_files_that_are_no_answers_are_not_waited_for(asker, server, tmp_path: Path):
    cache, request = AnswerCache(tmp_path / "kept"), about("cat")
    file = cache.file(request)
    file.parent.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text(json.dumps({"answer": good_answer()}))
    for number, make in enumerate((
        lambda: os.mkfifo(file), lambda: file.symlink_to("/dev/zero"), lambda: file.symlink_to(elsewhere),
        lambda: file.write_text(json.dumps({"answer": good_answer()}) + " " * (8 << 20)),
        lambda: file.write_text("[" * 100_000), lambda: file.write_text('{"answer": ' * 100_000),
        lambda: file.write_bytes(b"\xff\xfe\x00"), lambda: file.write_text("[]"), lambda: file.mkdir(),
    ), start=1):  # fmt: skip
        file.unlink(missing_ok=True)
        make()
        assert cache.get(request) is None
        assert len(asker().ask([request])) == 1
        assert len(server.bodies) == number
    assert json.loads(elsewhere.read_text())["answer"] == good_answer()


def test_half_a_surrogate_pair_in_a_kept_answer_is_replaced(tmp_path: Path):
    cache, request = AnswerCache(tmp_path), about("cat")
    cache.put(request, Answer((), "rules", "- red wing \ud83d\n- long tail", "m\udc00", "2026-01-01"))
    answer = cache.get(request)
    assert answer is not None
    (answer.text + answer.model + "".join(item.text for item in answer.items)).encode()


def test_who_answered_is_written_down(module, server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def run(name: str, url: str, *more: str) -> dict:
        status, _, errors = module("--out", name, "--classes", "names.txt", "--model", "tiny", "--base-url", url,
                                   "--prompts", "descriptions", *more)  # fmt: skip
        assert status == 0, errors
        return json.loads((tmp_path / name / "generation.json").read_text())

    server.always = well
    first = run("first", server.url.replace("//", "//me:password@") + "?token=0123456789")
    assert (first["answered_at"], first["endpoint"]) == ([server.url], server.url)
    second = run("second", "http://localhost:9/v1")
    assert (second["answered_at"], second["endpoint"]) == ([server.url], None)
    kept = sorted((tmp_path / "cache" / "llm").rglob("*.json"))
    assert [json.loads(file.read_text())["answer"]["host"] for file in kept] == [server.url] * 2
    old = json.loads(kept[0].read_text())
    del old["answer"]["host"]
    kept[0].write_text(json.dumps(old))
    third = run("third", "http://localhost:9/v1")
    assert third["answered_at"] == sorted([server.url, "unknown"])
    kept[0].unlink()
    other = server.url.replace("127.0.0.1", "localhost")
    fourth = run("fourth", other)
    assert (fourth["answered_at"], fourth["endpoint"]) == (sorted([server.url, other]), other)
