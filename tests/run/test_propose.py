"""``cbm propose``: on birds whose habitat goes with the species the first phrases are habitats, on others none is."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from birds_run import QUICK, small
from conftest import one_line

import cbm
from cbm.data.birds import ATTRIBUTES, home_habitats
from cbm.data.text_store import text_encoder
from cbm.metrics.truth import auroc_matrix
from cbm.run.audit import load_audit
from cbm.run.propose import propose

STORE = Path(small()[1].removeprefix("cache="))
CACHE = ["--cache", str(STORE)]
SETTINGS = [a for a in QUICK if not a.startswith(("method.", "nec"))] + ["nec=[]", "report=none", "controls=false"]


@pytest.fixture
def runs(command, monkeypatch):
    for name in ("birds", "birds_spurious"):
        status, said = command("train", f"dataset={name}", "method=posthoc", f"run_dir={name}", *small(name), *SETTINGS)
        assert status == 0, said


def means(run: str, phrases: list[str]) -> list[str]:
    """The concept of the data set whose pictures each phrase finds best."""
    model = cbm.load(run)
    _, data = model.read(("test",), cache=STORE)
    scores = data.test.x @ text_encoder(model.encoder, STORE, False)(phrases).T
    found = auroc_matrix(scores, data.test.concepts)[0]
    return [data.concept_names[k] for k in torch.as_tensor(found).nan_to_num().argmax(dim=1).tolist()]


def test_habitats_come_first_where_they_went_with_the_species(runs, module, tmp_path):
    habitats, homes = set(ATTRIBUTES["habitat"].values()), home_habitats()
    found = propose(Path("birds_spurious"), STORE)
    ten = [phrase for each in found for phrase in (each.phrase, *each.alike)][:10]
    assert sum(meaning in habitats for meaning in means("birds_spurious", ten)) >= 8
    rows = list(zip(found[:6], means("birds_spurious", [each.phrase for each in found[:6]])))
    placed = [(homes[name], meaning) for each, meaning in rows if meaning in habitats for name in each.classes]
    assert placed
    assert all(home == meaning for home, meaning in placed)  # and with no species that lives elsewhere
    assert all(name.split("/")[2] == next(iter(each.classes)).lower() for each in found for name in each.pictures)

    clean = propose(Path("birds"), STORE, count=10)
    assert sum(meaning in habitats for meaning in means("birds", [each.phrase for each in clean])) <= 1

    status, shown, errors = module("propose", "birds_spurious", *CACHE, "--count", "5", "--out", "list.yaml", "--json")
    assert status == 0, errors
    assert [each["phrase"] for each in json.loads(shown)] == [each.phrase for each in found[:5]]
    listed = yaml.safe_load(Path("list.yaml").read_text())
    assert {entry["expect"] for entry in listed} == {"neutral"}
    assert len(load_audit(Path("list.yaml"), cbm.load("birds_spurious").classes)) == 5
    Path("list.yaml").write_text(Path("list.yaml").read_text().replace("expect: neutral", "expect: unwanted"))
    assert module("audit", "birds_spurious", "list.yaml", *CACHE)[0] == 1  # the model does use some of them
    assert "is there already" in one_line(module("propose", "birds_spurious", *CACHE, "--out", "list.yaml")[::2])


def test_a_vocabulary_of_ones_own_and_what_cannot_be_asked(runs, module, tmp_path):
    Path("words.txt").write_text("wet sand\nred wing\nan Aldermoor on a branch\nfresh snow\nblue bill\n")
    found = propose(Path("birds_spurious"), STORE, vocabulary=Path("words.txt"))
    said = {phrase for each in found for phrase in (each.phrase, *each.alike)}
    assert said <= {"wet sand", "red wing", "fresh snow", "blue bill"}
    assert not any(each.in_bank for each in found)
    for words, line in (
        (["--count", "0"], "--count=0: expected 1 or more"),
        (["--vocabulary", "no.txt"], "no.txt"),
    ):
        assert line in one_line(module("propose", "birds", *CACHE, *words)[::2])
    Path("words.txt").write_text("Aldermoors\nwet sand\n")
    said = one_line(module("propose", "birds", *CACHE, "--vocabulary", "words.txt")[::2])
    assert "1 of 2 phrases name no class" in said
