"""A vision-language model asked about images: the same client, cache and failures as for phrases."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("openai")
pytest.importorskip("pydantic")
pytest.importorskip("tenacity")

from llm_server import completion, send

from cbm.concepts.llm.answers import first_word
from cbm.concepts.llm.client import Endpoint, Request
from cbm.concepts.llm.vision import PROMPT, VisionExpert
from cbm.data.images import ImageArray
from cbm.errors import UserError

CONCEPTS = ["wing", "beak"]
NAN = float("nan")


class Images(ImageArray):
    """Four grey images; those whose rows are in ``broken`` cannot be opened."""

    def __init__(self, broken: tuple[int, ...] = ()):
        super().__init__(np.arange(4, dtype=np.uint8).repeat(12).reshape(4, 2, 2, 3) * 50, list("abcd"))
        self.broken, self.opened = broken, 0

    def open(self, row: int, least: int | None = None):
        self.opened += 1
        if row in self.broken:
            raise OSError("cannot identify image file")
        return super().open(row)


@pytest.fixture
def expert(server, tmp_path: Path):
    def make(images: Images | None = None, **changes: object) -> VisionExpert:
        settings = {"concurrency": 1, "retries": 2, "first_wait": 0.01, "longest_wait": 0.05}
        endpoint = Endpoint("tiny", server.url, **settings | changes)
        truth = torch.tensor([[1.0, 0.0]] * 4)
        return VisionExpert(endpoint, images or Images(), CONCEPTS, tmp_path, truth)

    return make


def says(handler, body):
    (question,) = body["messages"]
    text, image = question["content"]
    assert image["image_url"]["url"].startswith("data:image/png;base64,")
    assert (body["max_tokens"], body["temperature"]) == (8, 0)
    assert "response_format" not in body
    send(200, completion("**Yes**, it does" if "wing" in text["text"] else "Perhaps"))(handler, body)


def test_questions_without_an_image_are_named_as_they_always_were():
    """Answers that were paid for are found again: the hash is that of the code before images could be asked about."""
    asked = Request("tiny", "You name what can be seen.", "What does a wren look like?", "concepts", 0.5, sample=1)
    assert asked.hash == "b4de71e2b503809c872d416d3d450a5b4a9f2530fff39b9f18f86c34de6d00bd"
    words = {Request("tiny", "", "?", "word", image=image).hash for image in ("", "a" * 32, "b" * 32)}
    assert len(words) == 3


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Yes.", "yes"),
        ("  NO!\nbecause", "no"),
        ("**Yes**, it", "yes"),
        ("- yes", "yes"),
        ("<think>no?</think>\nYes", "yes"),
        ("<think>no", ""),
        ("", ""),
        (" \n", ""),
        ("1", ""),
    ],
)
def test_first_word(text: str, word: str):
    assert first_word(text) == word


def test_every_answer_is_kept(server, expert):
    server.always = says
    asked = torch.tensor([[True, True], [True, False], [False, False], [False, True]])
    expected = torch.tensor([[1.0, NAN], [1.0, NAN], [NAN, NAN], [NAN, NAN]])
    first = expert()
    torch.testing.assert_close(first(asked), expected, equal_nan=True)
    assert len(server.bodies) == 4
    assert first.summary() == "tiny answered 4 new questions (4 are kept, 100.0% right)"
    again = expert(images := Images())
    torch.testing.assert_close(again(asked), expected, equal_nan=True)
    assert len(server.bodies) == 4
    assert images.opened == 0


def test_an_image_that_cannot_be_opened_is_not_answered_and_stops_nothing(server, expert):
    server.always = says
    asked = expert(Images(broken=(0, 1, 2)))
    found = asked(torch.tensor([[True, False]] * 4))
    torch.testing.assert_close(found[:, 0], torch.tensor([NAN, NAN, NAN, 1.0]), equal_nan=True)
    lost = "; 3 about images that cannot be read: OSError: cannot identify image file"
    assert asked.summary() == f"tiny answered 1 new questions (1 are kept, 100.0% right){lost}"


def test_a_request_that_is_not_accepted_is_sent_once(server, expert):
    server.always = send(400, {"error": {"message": "no pictures here"}})
    with pytest.raises(UserError, match="does not accept the request"):
        expert()(torch.tensor([[True, False]] + [[False, False]] * 3))
    assert len(server.bodies) == 1


def test_a_busy_server_is_asked_again(server, expert):
    server.script = [send(429, {"error": {"message": "slow down"}}, **{"Retry-After": "0"}), send(503, "later")]
    server.always = says
    assert float(expert()(torch.tensor([[True, False]] + [[False, False]] * 3))[0, 0]) == 1.0
    assert len(server.bodies) == 3


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (send(401, {"error": {"message": "bad key"}}), r"refused the key .*bad key; 1 answers are kept, run the same"),
        (send(404, {"error": {"message": "what?"}}), r"has no model 'tiny'.*1 answers are kept"),
        (
            send(500, {"error": {"message": "on fire"}}),
            r"does not answer about images \(status 500.*1 answers are kept",
        ),
    ],
)
def test_a_server_that_gives_up_is_one_line_and_the_same_command_goes_on(server, expert, act, message: str):
    asked = torch.tensor([[True, False]] * 4)
    server.always = says
    expert()(torch.tensor([[True, False]] + [[False, False]] * 3))
    server.always = act
    with pytest.raises(UserError, match=message):
        expert(retries=0)(asked)
    done = len(server.bodies)
    server.always = says
    torch.testing.assert_close(expert()(asked)[:, 0], torch.ones(4))
    assert len(server.bodies) == done + 3  # the one that is kept is not asked again


def test_a_budget_ends_an_expert_s_questions_and_the_same_command_goes_on(server, expert):
    server.always = says
    asked = torch.tensor([[True, False]] * 4)
    line = "the budget of 3 requests is used: 3 of 4 questions are answered and kept; run the same command again"
    with pytest.raises(UserError, match=line):
        expert(max_requests=3)(asked)
    assert len(server.bodies) == 3
    assert expert(max_requests=1).ask([(row, "wing") for row in range(4)]) == [1.0] * 4
    assert expert(max_requests=1).ask([(row, "beak") for row in range(2)])[1] is None
    assert len(server.bodies) == 5


def test_former_answers_that_are_damaged_are_left_out(server, expert, tmp_path: Path):
    server.always = says
    (tmp_path / "vision").mkdir()
    name = hashlib.sha256(f"tiny|{PROMPT}".encode()).hexdigest()[:12]
    (tmp_path / "vision" / f"{name}.jsonl").write_text("[" * 100_000 + '\n{"picture": [], "concept": 1, "answer": 1}\n')
    assert expert().ask([(0, "wing")]) == [1.0]
