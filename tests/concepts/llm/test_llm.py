import csv
import html
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("openai")
pytest.importorskip("pydantic")
pytest.importorskip("tenacity")

from llm_server import completion, concepts, drop, send, well

from cbm.concepts import read_bank
from cbm.concepts.llm.answers import (
    Item,
    Unparsable,
    looks_like_sentence,
    parse_answer,
    read_plain,
    salvage,
    split_by_rules,
)
from cbm.concepts.llm.client import OTHER_NAMES, Answer, AnswerCache, Asker, Endpoint, Request
from cbm.concepts.llm.generate import Settings, generate, plan
from cbm.concepts.llm.prompts import family_names, load_families
from cbm.errors import UserError
from cbm.files.shipped import install_command

LONG = 600.0
"""Seconds that only a test that fails would wait."""
ERROR = {"error": {"message": "no", "type": "x"}}


def request(word: str = "cat", **changes: object) -> Request:
    return replace(Request("tiny", "be brief", f'Class "{word}"', "concepts"), **changes)


@pytest.fixture
def asker(server, tmp_path: Path):
    def make(**changes: object) -> Asker:
        settings = {"concurrency": 1, "timeout": LONG, "retries": 3, "first_wait": 0.01, "longest_wait": 0.3}
        return Asker(Endpoint("tiny", server.url, **{**settings, **changes}), AnswerCache(tmp_path / "kept"))

    return make


def ask_one(asker: Asker, asked: Request | None = None) -> Answer:
    asked = asked or request()
    return asker.ask([asked])[asked.hash]


def test_an_answer_is_parsed_counted_and_never_paid_twice(asker, server):
    first = asker()
    answer = ask_one(first)
    assert [item.text for item in answer.items] == ["white belly with grey spots", "long grey tail", "grey wing bars"]
    assert (answer.status, answer.model) == ("ok", "tiny-0613")
    assert (first.tally.asked, first.tally.prompt_tokens, first.tally.completion_tokens) == (1, 100, 20)
    assert first.tally.cost(10.0, 100.0) == pytest.approx(0.003)
    assert server.bodies[0]["response_format"]["json_schema"]["strict"] is True
    second = asker()
    assert ask_one(second) == answer
    assert (len(server.bodies), second.tally.cached, second.tally.prompt_tokens) == (1, 1, 0)


@pytest.mark.parametrize(
    "fault",
    [
        send(500, ERROR), send(503, "busy"), send(200, '{"choices": [{"mess'), send(200, "{}"), send(200, "[]"), drop,
        send(200, json.dumps(concepts("red cap"))[:80], length="5000"),
    ],
    ids=["500", "503", "broken body", "no choices", "a list", "dropped", "truncated stream"],
)  # fmt: skip
def test_passing_faults_are_retried(asker, server, fault):
    server.script = [fault, fault]
    found = asker()
    assert ask_one(found).status == "ok"
    assert (len(server.bodies), found.tally.retried) == (3, 2)


def test_retry_after_is_waited_for_and_capped(asker, server):
    server.script = [send(429, ERROR, Retry_After="0.2"), send(429, ERROR, Retry_After="3600")]
    assert ask_one(asker()).status == "ok"
    first, second, third = server.times
    assert 0.2 <= second - first < LONG
    assert 0.3 <= third - second < LONG


def test_a_slow_server_times_out_and_is_asked_again(asker, server):
    """The first answer does not come before somebody asks again."""
    again = threading.Event()

    def act(handler, body):
        if len(server.bodies) == 1:
            assert again.wait(LONG)
        else:
            again.set()
            well(handler, body)

    server.always = act
    found = asker(timeout=0.5, retries=100)
    assert ask_one(found).status == "ok"
    assert found.tally.retried >= 1


def test_retries_end(asker, server):
    server.always = send(500, ERROR)
    found = asker(retries=2)
    assert found.ask([request()]) == {}
    assert len(server.bodies) == 3
    assert "status 500" in found.tally.failures[request().hash]


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, ERROR, "refused the key"), (404, ERROR, "no model 'tiny'"), (400, ERROR, "does not accept the request"),
        (429, {"error": {"message": "x", "code": "insufficient_quota"}}, "no credit"),
    ],
)  # fmt: skip
def test_what_no_retry_can_mend_ends_at_once(asker, server, status, body, message):
    server.always = send(status, body)
    with pytest.raises(UserError, match=message):
        asker().ask([request(), request("dog"), request("owl")])
    assert len(server.bodies) == (2 if status == 400 else 1)


def test_a_wrong_schema_is_asked_again_with_another_seed(asker, server):
    server.script = [send(200, completion('{"concepts": "red"}'))]
    assert ask_one(asker()).status == "ok"
    assert [body.get("seed") for body in server.bodies] == [None, 1000]


def test_at_last_rules_read_it(asker, server):
    server.always = send(200, completion("Here you go:\n1. **red cap**\n2) 'long tail'; short bill\n"))
    found = asker()
    answer = ask_one(found)
    assert answer.status == "rules"
    assert [item.text for item in answer.items] == ["red cap", "long tail", "short bill"]
    assert (len(server.bodies), found.tally.prompt_tokens) == (3, 300)


def test_an_empty_answer_fails(asker, server):
    server.always = send(200, completion(""))
    found = asker()
    assert found.ask([request()]) == {}
    assert "no usable answer in 3 tries" in found.tally.failures[request().hash]


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_thinking_without_an_answer_is_a_failed_request(asker, server, finish):
    server.always = send(200, completion("<think>Okay, the user wants\n- a red cap", finish=finish))
    found = asker()
    assert found.ask([request()]) == {}
    assert "no usable answer in 3 tries (thinking and no answer)" in found.tally.failures[request().hash]


def test_prose_that_was_cut_off_is_no_answer_to_a_question_for_json(asker, server):
    server.always = send(200, completion("The bird is small.\nIt has a red cap.\nIts tail", finish="length"))
    assert asker().ask([request()]) == {}


def test_an_answer_that_was_misread_is_read_anew(asker, server, tmp_path: Path):
    """What an older version kept: the thoughts are its items."""
    text = f"Okay, the user wants a bird.\n</think>\n{json.dumps({'concepts': ['red cap', 'long tail']})}"
    cache = AnswerCache(tmp_path / "kept")
    for status in ("rules", "ok", "truncated"):
        cache.put(request(), Answer((Item("Okay, the user wants a bird"),), status, text, "tiny", "2026"))
        answer = ask_one(asker())
        assert ([item.text for item in answer.items], answer.status) == (["red cap", "long tail"], "ok")
    assert server.bodies == []
    cache.put(
        request(), Answer((Item("Okay, the user wants"),), "truncated", "<think>Okay, the user wants", "t", "2026")
    )
    assert ask_one(asker()).items[0].text == "white belly with grey spots"  # asked again
    assert len(server.bodies) == 1


def knows(accepted: dict[str, str | None], hint: bool):
    """A server that refuses a parameter or role unless it goes by this name; None refuses every name."""

    def act(handler, body):
        roles = {message["role"] for message in body["messages"]}
        for name, right in accepted.items():
            others = [n for n in (name, *OTHER_NAMES[name]) if n and n != right]
            if bad := next((n for n in others if n in body or (name == "system" and n in roles - {"user"})), None):
                use = f" Use '{right}' instead." if hint and right else ""
                message = f"Unsupported parameter: '{bad}' is not supported with this model.{use}"
                if name == "system":
                    message = f"Unsupported value: 'messages[0].role' does not support '{bad}' with this model."
                error = {"message": message, "param": bad, "code": "unsupported_parameter"}
                return send(400, {"error": error})(handler, body)
        return send(200, concepts("red cap"))(handler, body)

    return act


@pytest.mark.parametrize("hint", [True, False])
@pytest.mark.parametrize(
    "accepted",
    [
        {"max_tokens": "max_completion_tokens"}, {"max_tokens": "max_output_tokens"}, {"system": "developer"},
        {"system": "user"}, {"seed": ""}, {"max_tokens": "max_completion_tokens", "system": "developer", "seed": ""},
    ],
    ids=str,
)  # fmt: skip
def test_parameters_by_another_name(asker, server, accepted, hint):
    server.always = knows(accepted, hint)
    asked = [request(word, max_tokens=100, sample=1) for word in ("cat", "dog", "owl")]
    assert len(asker(concurrency=2).ask(asked)) == 3
    last = server.bodies[-1]
    for name, right in accepted.items():
        if name == "system":
            assert last["messages"][0]["role"] == right
        else:
            assert name not in last
            assert right == "" or last[right] == {"max_tokens": 100}[name]
    assert "response_format" in last
    assert len(server.bodies) <= 3 + 2 * 2 * len(accepted)


def test_a_parameter_without_any_name_is_one_line(asker, server):
    server.always = knows({"max_tokens": None}, hint=False)
    with pytest.raises(UserError, match="does not accept the request .*max_output_tokens"):
        asker().ask([request(max_tokens=100)])
    assert len(server.bodies) <= 4


@pytest.mark.parametrize("refusal", [completion(None, refusal="I cannot"), completion("", finish="content_filter")])
def test_a_refusal_is_recorded_and_not_asked_again(asker, server, refusal):
    server.always = send(200, refusal)
    assert ask_one(asker()).status == "refused"
    assert ask_one(asker()).items == ()
    assert len(server.bodies) == 1


def test_a_cut_answer_keeps_its_whole_items(asker, server):
    server.always = send(200, completion('{"concepts": ["red cap", "long tail", "short bi', finish="length"))
    answer = ask_one(asker())
    assert (answer.status, [item.text for item in answer.items]) == ("truncated", ["red cap", "long tail"])
    assert len(server.bodies) == 1


def test_a_server_without_response_format_is_asked_plainly(asker, server):
    def act(handler, body):
        if "response_format" in body:
            send(400, {"error": {"message": "response_format is not supported"}})(handler, body)
        else:
            send(200, completion("- red cap\n- long tail"))(handler, body)

    server.always = act
    answers = asker().ask([request(), request("dog"), request("owl")])
    assert len(answers) == 3
    assert ["response_format" in body for body in server.bodies] == [True, False, False, False]


def test_no_more_requests_in_flight_than_allowed(asker, server):
    server.delay = 0.03
    answers = asker(concurrency=4).ask([request(f"w{i}") for i in range(24)])
    assert len(answers) == 24
    assert 2 <= server.most <= 4


def test_a_damaged_answer_on_disk_is_asked_again(asker, server, tmp_path: Path):
    ask_one(asker())
    file = AnswerCache(tmp_path / "kept").file(request())
    for damage in ("", "{", "[]", '{"answer": {"items": [1]}}'):
        before = len(server.bodies)
        file.write_text(damage)
        assert ask_one(asker()).status == "ok"
        assert len(server.bodies) == before + 1


def test_the_run_gives_up_when_the_server_is_gone(asker, server):
    server.always = drop
    found = asker(retries=0, concurrency=2)
    assert found.ask([request(f"w{i}") for i in range(50)]) == {}
    assert len(server.bodies) <= 4
    assert found.tally.not_asked >= 46


def test_a_run_that_broke_off_goes_on(asker, server, tmp_path: Path):
    families = load_families("labo")
    server.script = [well] * 4
    server.always = drop
    endpoint, cache = asker(retries=0).endpoint, AnswerCache(tmp_path / "kept")
    arguments = (["cat", "dog"], families, endpoint, cache, tmp_path / "bank", Settings())
    with pytest.raises(UserError, match=r"of 10 requests failed.*4 answers so far.*run the same command again"):
        generate(*arguments)
    assert not (tmp_path / "bank").exists()
    before = server.asked()[:4]
    server.bodies.clear()
    server.always = None
    done = generate(*arguments)
    assert (done.tally.cached, done.tally.asked) == (4, 6)
    assert len(server.bodies) == 6
    assert not set(before) & set(server.asked())


def test_sentences_are_taken_apart(asker, server, tmp_path: Path):
    sentence = "It has a bright red cap on its head and a long forked tail"
    splits = {"sentences": [{"number": 1, "phrases": ["bright red cap", "long forked tail"]}]}
    server.script = [send(200, concepts(sentence)), send(200, completion(json.dumps(splits)))]
    endpoint = asker().endpoint
    families = load_families("descriptions")
    done = generate(["owl"], families, endpoint, AnswerCache(tmp_path / "kept"), tmp_path / "bank", Settings())
    assert done.bank.texts == ["bright red cap", "long forked tail"]
    assert len(done.bank.concepts[0].provenance["requests"]) == 2


def test_attributes_become_groups(asker, server, tmp_path: Path):
    def act(handler, body):
        colour = "white" if '"owl"' in body["messages"][1]["content"] else "grey"
        groups = [{"group": "Belly_Color", "values": [colour]}, {"group": "tail shape", "values": ["forked tail"]}]
        send(200, completion(json.dumps({"groups": groups})))(handler, body)

    server.always = act
    endpoint, cache = asker().endpoint, AnswerCache(tmp_path / "kept")
    bank = generate(["owl", "gull"], load_families("attributes"), endpoint, cache, tmp_path / "b", Settings()).bank
    assert [(c.text, c.group, c.classes) for c in bank.concepts] == [
        ("white belly", "belly colour", ("owl",)),
        ("forked tail", "tail shape", ("owl", "gull")),
        ("grey belly", "belly colour", ("gull",)),
    ]


def test_the_command_makes_a_bank_that_can_be_read_and_reviewed(module, server, tmp_path: Path):
    evil = '<script>alert("x")</script> red cap'
    server.script = [send(200, concepts(evil, "=SUM(A1)", "long grey tail", "a cat face", "weighs 3 kg"))]
    arguments = ("--out", "bank", "--classes", "names.txt", "--model", "tiny", "--base-url", server.url,
                 "--prompts", "descriptions", "--concurrency", "1")  # fmt: skip
    status, out, errors = module(*arguments, "--price-in", "10", "--price-out", "100")
    assert status == 0, errors
    assert "2 requests: 2 asked, 0 cached" in out
    assert "200 prompt tokens, 40 completion tokens, 0.0060 USD" in out
    bank = read_bank(tmp_path / "bank")
    assert bank.source == "llm:tiny"
    assert bank.classes == ["cat", "dog"]
    assert {d.text: d.reason for d in bank.dropped}["a cat face"] == "names the class 'cat'"
    tail = bank.concepts[bank.index("long grey tail")].provenance
    assert tail["family"] == ["descriptions"]
    assert tail["date"].startswith("2023-11-14")
    page = (tmp_path / "bank" / "review.html").read_text()
    assert "<script" not in page
    assert html.escape(evil.strip()) in page
    rows = list(csv.DictReader((tmp_path / "bank" / "review.csv").open()))
    assert {row["phrase"]: row["kept"] for row in rows}["weighs 3 kg"] == "dropped"
    assert any(row["phrase"].startswith("'=") for row in rows)
    record = json.loads((tmp_path / "bank" / "generation.json").read_text())
    assert record["endpoint"] == server.url
    assert record["usage"]["this_run"]["prompt_tokens"] == 200
    status, _, errors = module(*arguments)
    assert (status, len(server.bodies)) == (2, 2)
    assert "'bank' is there already" in errors


def test_a_bank_without_the_answers_that_failed(module, server, tmp_path: Path):
    server.script = [send(500, ERROR)]
    arguments = ("--out", "bank", "--classes", "names.txt", "--model", "tiny", "--base-url", server.url,
                 "--prompts", "descriptions", "--concurrency", "1")  # fmt: skip
    status, _, errors = module(*arguments, "--cache", "one", "--retries", "0")
    assert status == 2
    assert "1 of 2 requests failed" in errors
    assert not (tmp_path / "bank").exists()
    server.script = [send(500, ERROR)]
    status, _, errors = module(*arguments, "--cache", "two", "--retries", "0", "--skip-failed")
    assert status == 0, errors
    assert read_bank(tmp_path / "bank").classes == ["dog"]
    record = json.loads((tmp_path / "bank" / "generation.json").read_text())
    assert record["counts"]["failed"] == len(record["failures"]) == 1
    assert record["classes_without_concepts"] == ["cat"]


def test_sentences_nobody_takes_apart_are_taken_apart_by_rules(asker, server, tmp_path: Path):
    sentence = "It has a bright red cap on its head and a long forked tail"
    server.script = [send(200, concepts(sentence))]
    server.always = send(200, completion("I would rather not."))
    endpoint, cache = asker().endpoint, AnswerCache(tmp_path / "kept")
    done = generate(["owl"], load_families("descriptions"), endpoint, cache, tmp_path / "bank", Settings())
    assert done.bank.texts == split_by_rules(sentence)
    assert len(done.bank) > 1


def test_class_names_of_a_data_set(module, server, colour_folder: Path, tmp_path: Path):
    server.always = send(200, concepts("long tail"))
    status, _, errors = module("--out", "bank", "--dataset", "folder", "--root", str(colour_folder), "--model", "tiny",
                               "--base-url", server.url, "--prompts", "descriptions")  # fmt: skip
    assert status == 0, errors
    assert read_bank(tmp_path / "bank").classes == ["blue", "green", "red"]


def test_a_thousand_classes(module, server, tmp_path: Path):
    def act(handler, body):
        number = body["messages"][1]["content"].split('"kind')[1][:4]
        tail = "".join("abcdefghij"[int(digit)] for digit in number)
        send(200, concepts(f"long {tail} tail", "two legs", f"a kind{number}"))(handler, body)

    server.always = act
    (tmp_path / "names.txt").write_text("".join(f"kind{i:04d}\n" for i in range(1000)))
    status, out, errors = module("--out", "bank", "--classes", "names.txt", "--model", "tiny", "--base-url", server.url,
                                 "--prompts", "descriptions", "--concurrency", "16")  # fmt: skip
    assert status == 0, errors
    assert "1000 requests: 1000 asked, 0 cached" in " ".join(out.split())
    assert 1 < server.most <= 16
    bank = read_bank(tmp_path / "bank")
    assert len(bank.classes) == 1000
    assert len(bank) == 1001
    assert len(bank.concepts[bank.index("two legs")].classes) == 1000
    assert sum("names the class" in dropped.reason for dropped in bank.dropped) == 1000


def test_interrupted_from_the_keyboard(server, tmp_path: Path):
    ended = threading.Event()

    def act(handler, body):
        if len(server.bodies) == 4:  # this one is never answered
            assert ended.wait(LONG)
        well(handler, body)

    server.always = act
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    command = [sys.executable, "-m", "cbm", "concepts", "llm", "--out", "bank", "--classes", "names.txt", "--model",
               "tiny", "--base-url", server.url, "--prompts", "labo", "--concurrency", "1"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    run = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + LONG
    while len(server.bodies) < 4:
        assert run.poll() is None, run.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    run.send_signal(signal.SIGINT)
    errors = run.communicate()[1]
    ended.set()
    assert run.returncode not in (0, -signal.SIGINT)
    assert "Traceback" not in errors
    assert not (tmp_path / "bank").exists()
    before = len(server.bodies)
    assert before == 4
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(server.bodies) - before <= 10 - (before - 1)  # only what was in flight is asked again
    assert read_bank(tmp_path / "bank").classes == ["cat", "dog"]


def test_a_dry_run_sends_nothing_and_needs_no_key(module, server, tmp_path: Path):
    status, out, _ = module("--out", "bank", "--classes", "names.txt", "--model", "gpt", "--dry-run",
                            "--prompts", "labo", "--price-in", "1",
                            "--base-url", "https://example.invalid/v1")  # fmt: skip
    assert status == 0
    assert "10 requests, 0 of them cached, 10 to send" in out
    assert 'Class "cat"' in out
    assert "estimates" in out
    assert not (tmp_path / "bank").exists()
    assert server.bodies == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompts", "lab"], "unknown prompt family 'lab': did you mean 'labo'"),
        (["--prompts", "mine.yaml"], "unknown place {clas}"),
        (["--base-url", "localhost:8000"], "--base-url: expected a URL"),
        (["--base-url", "https://example.invalid/v1"], "set the environment variable OPENAI_API_KEY"),
        (["--concurrency", "0"], "--concurrency 0: expected 1 or more"),
        (["--temperature", "9"], "--temperature 9.0: expected a number from 0 to 2"),
    ],
)
def test_bad_input(module, server, tmp_path: Path, arguments: list[str], message: str):
    question = "{facet: a, ask: 'what of {class} and {clas}'}"
    (tmp_path / "mine.yaml").write_text(f"name: mine\nsystem: s\nquestions: [{question}]\n")
    status, _, errors = module("--out", "bank", "--classes", "names.txt", "--model", "tiny", *arguments)
    assert status == 2
    assert message in errors
    assert "Traceback" not in errors


def test_a_missing_package_is_named(module, server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    status, _, errors = module("--out", "bank", "--classes", "names.txt", "--model", "tiny")
    assert status == 2
    assert f"'openai': {install_command('llm')}" in errors


def test_credentials_are_not_written_down():
    assert Endpoint("m", "https://me:secret@host.org:99/v1?key=secret").host == "https://host.org:99/v1"
    assert Endpoint("m", "http://192.168.1.5:8000/v1").local
    assert not Endpoint("m", "https://api.openai.com/v1").local


def test_shipped_families_are_whole():
    families = load_families(",".join(family_names()))
    assert {family.name for family in families} == {"labo", "label_free", "descriptions", "attributes"}
    asked = plan(["001.Black_footed_Albatross"], families, "m", Settings(superclass="bird"))
    assert all('"black footed albatross"' in entry.request.user for entry in asked)
    assert all("{" not in entry.request.user + entry.request.system for entry in asked)
    assert len({entry.request.hash for entry in asked}) == len(asked) == 10


def test_samples_are_different_requests():
    asked = plan(["cat"], load_families("descriptions"), "m", Settings(samples=3))
    assert len({entry.request.hash for entry in asked}) == 3
    assert [entry.request.payload(True, 0).get("seed") for entry in asked] == [None, 1, 2]


def test_parsing():
    assert parse_answer('```json\n{"concepts": ["red cap."]}\n```', "concepts")[0].text == "red cap"
    assert parse_answer('<think>hm</think>{"concepts": ["a"]}', "concepts")[0].text == "a"
    with pytest.raises(Unparsable):
        parse_answer('{"concepts": []}', "concepts")
    assert salvage("red cap", "concepts") == []
    assert [i.group for i in salvage('{"groups": [{"group": "a", "values": ["b c"]}, {"gr', "groups")] == ["a"]
    assert [i.text for i in read_plain("a b\nc d\ne", "concepts", cut=True)] == ["a b", "c d"]
    assert looks_like_sentence("it has a very long red tail that ends in white")
    assert not looks_like_sentence("long red tail")
    parts = ["red cap", "long tail", "short legs"]
    assert split_by_rules("The bird has a red cap, a long tail and short legs") == parts
