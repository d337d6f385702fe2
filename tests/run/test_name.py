"""``python -m cbm name``: listing, naming by hand, and a model whose proposals are tested."""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from birds_run import shared_folder
from explored_run import copied
from llm_server import concepts, send, server  # noqa: F401
from PIL import Image

import cbm
from cbm.concepts.llm.unit_pictures import ACROSS, LINE, TILE, sheet_of
from cbm.concepts.units import units_of
from cbm.run.name import fires_of, pictures_of
from cbm.trained.names import change_names, rename, unit_states


@pytest.fixture
def run() -> Path:
    return copied()


@pytest.fixture
def name(module, run: Path):
    return lambda *words: module("name", str(run), "--cache", str(shared_folder() / "cache"), *words)


def unname(run: Path) -> list[str]:
    """Take the names of all units away; returns them."""
    words = [unit.word for unit in units_of(cbm.load(run).bank)]

    def change(bank):
        made = []
        for concept in bank.concepts:
            said = concept.provenance["unit"]
            provenance = {"unit": {**said, "word": None}, "embedded_as": concept.text}
            made.append(replace(concept, text=f"unnamed {said['number']:04d}", provenance=provenance))
        return replace(bank, concepts=tuple(made))

    change_names(run, change)
    return words


def test_units_are_listed_named_and_named_back(name, run: Path):
    status, printed, errors = name("--units", "5")
    assert status == 0, errors
    states = unit_states(cbm.load(run))
    assert f"{len(states)} units, {sum(s.unit.named for s in states)} with a name" in printed
    listed = json.loads(name("--json")[1])
    assert [each["text"] for each in listed] == [s.text for s in states]
    assert set(listed[0]) >= {"text", "state", "weight", "classes", "auroc", "firing", "words", "number"}
    text = states[0].text
    assert f"'{text}' is called 'spotted wing' now" in name("--unit", text, "--as", "spotted wing")[1]
    assert json.loads(name("--unit", text, "--json")[1])[0]["state"] == "named by a person"
    assert json.loads(name("--undo", "--json")[1]) == {"was": "spotted wing", "is": text}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--as", "x"], "error: --as needs --unit NAME: which unit is called so"),
        (["--unit", "a", "--as", "x", "--undo"], "error: --as and --undo: say one of them"),
        (["--undo"], "error: no unit of this run was given another name: there is nothing to undo"),
        (["--units", "0"], "error: --units 0: expected 1 or more"),
        (["--base-url", "x"], "error: --base-url needs --model NAME: who is asked there"),
        (["--max-requests", "2"], "error: --max-requests needs --model NAME: who is asked there"),
        (["--unit", "unnamed 99999"], "error: no unit 'unnamed 99999'"),
        (["--model", "m", "--base-url", "ftp://x"], "error: --base-url: expected a URL"),
    ],
)
def test_what_is_refused(name, words: list[str], said: str):
    status, printed, errors = name(*words)
    assert (status, printed) == (2, "")
    assert errors.splitlines()[-1].startswith(said)


def test_concepts_that_were_written_down(module):
    status, _, errors = module("name", str(copied("labo")))
    assert status == 2
    assert errors.splitlines()[-1].startswith("error: the concepts of this run were written down")


def test_a_model_proposes_and_only_what_passes_is_taken(name, run: Path, server):  # noqa: F811
    """The right words among wrong ones: they pass for the units they are of, and for nothing that is not asked."""
    words = {unit: word for unit, word in enumerate(unname(run)) if word is not None}
    bank = cbm.load(run).bank
    order = [bank.texts.index(s.text) for s in unit_states(cbm.load(run))]
    asked = [column for column in order if column in words]
    assert len(asked) >= 3
    right, wrong = words[asked[0]], "a photo of nothing at all"

    def answer(handler, body):
        system, question = body["messages"]
        text, image = question["content"]
        assert "short names" in text["text"]
        assert "one to five words" in system["content"]
        kind, _, data = image["image_url"]["url"].partition(",")
        sheet = Image.open(io.BytesIO(base64.b64decode(data)))
        assert kind == "data:image/png;base64"
        assert sheet.width == ACROSS * TILE
        assert "temperature" not in body
        send(200, concepts(wrong, right, "Lorimund"))(handler, body)

    server.always = answer
    unit = bank.texts[asked[0]]
    status, printed, errors = name("--model", "tiny", "--base-url", server.url, "--unit", unit, "--json")
    assert status == 0, errors
    found = {each["text"]: each for each in json.loads(printed)}
    assert found[right]["taken"] == right
    assert found[right]["auroc"] >= 0.7
    assert not found[wrong]["passed"]
    assert found[wrong]["taken"] is None
    assert "class" in found["Lorimund"]["why"]
    named = units_of(cbm.load(run).bank)[asked[0]]
    assert named.state == "named by a model"
    assert (named.proposed["model"], named.proposed["text"], named.former) == ("tiny", right, (unit,))
    assert len(server.bodies) == 1
    # the same question is not paid twice, and says the same without a server
    rename(run, right, "something else")
    server.http.shutdown()
    status, printed, _ = name("--model", "tiny", "--base-url", server.url, "--unit", unit)
    assert (status, len(server.bodies)) == (0, 1)
    assert "of 1 units, 1 got a new name" in printed


def test_unnamed_units_are_asked_about_and_what_is_kept_goes_on(name, run: Path, server):  # noqa: F811
    unname(run)
    server.always = lambda handler, body: send(200, concepts("Lorimund", "like a Caldreth"))(handler, body)
    words = ("--model", "small", "--base-url", server.url, "--units", "4")
    status, printed, errors = name(*words, "--max-requests", "3", "--json")
    assert (status, len(server.bodies)) == (0, 3), errors
    assert "stopped at --max-requests 3, 1 of 4 units are left" in errors
    assert len({each["unit"] for each in json.loads(printed)}) == 3
    assert "of 4 units, 0 got a new name" in name(*words)[1]
    assert len(server.bodies) == 4
    server.always = send(500, {"error": {"message": "tired"}})
    before = (run / "bank" / "bank.json").read_bytes()
    status, _, errors = name("--model", "other", "--base-url", server.url, "--units", "1")
    assert status == 2
    assert "run the same command again to go on" in errors.splitlines()[-1]
    assert (run / "bank" / "bank.json").read_bytes() == before


def test_which_pictures_are_seen():
    columns, values = (
        torch.tensor([[0, 1], [1, -1], [1, 0], [-1, -1]]),
        torch.tensor([[3.0, 1], [2, 0], [5, 1], [0, 0]]),
    )
    assert pictures_of(1, columns, values) == ([2, 1, 0], [3])
    assert pictures_of(2, columns, values) == ([], [0, 1, 2, 3])
    assert fires_of(columns, [1, 1, 0], 2).tolist() == [[0, 1, 2], [0, 1, -1], [0, 1, 2], [-1, -1, -1]]


def test_a_sheet_of_pictures():
    """Those above the line on which it fires, of any shape; white where there is none."""
    colours = {0: "red", 1: "lime", 2: "blue"}
    sizes = {0: (10, 40), 1: (300, 20), 2: (64, 64)}
    sheet = sheet_of(lambda row: Image.new("RGB", sizes[row], colours[row]), [0, 1], [2])
    assert sheet.size == (ACROSS * TILE, 2 * TILE + LINE)
    middle = TILE // 2
    assert sheet.getpixel((middle, middle)) == (255, 0, 0)
    assert sheet.getpixel((TILE + middle, middle)) == (0, 255, 0)
    assert sheet.getpixel((2 * TILE + middle, middle)) == (255, 255, 255)
    assert sheet.getpixel((middle, TILE + LINE // 2)) == (0, 0, 0)
    assert sheet.getpixel((middle, TILE + LINE + middle)) == (0, 0, 255)
