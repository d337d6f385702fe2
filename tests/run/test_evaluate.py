"""What an evaluation fits: nothing. What it says beside the accuracy."""

import json
import re
from pathlib import Path

import pytest
import torch
from birds_run import QUICK, small
from conftest import COLOURS, paint

import cbm
from cbm.concepts.readers import match_concepts


def test_cut_points_of_a_card_are_those_of_the_run(command, tmp_path: Path):
    cache = small()[1]
    settings = [*small(), *QUICK, "method=posthoc", "method.lam=0.001", "run_dir=one", "report=false", "controls=false"]
    status, errors = command("train", *[s for s in settings if "max_epochs" not in s])
    assert status == 0, errors
    kept = json.loads(Path("one/about.json").read_text())["cut_points"]
    assert len(kept) > 10
    shift = [f"dataset.{s.removeprefix('dataset.')}" for s in small("birds_shift") if s.startswith("dataset.")]
    status, errors = command("eval", "run=one", cache, "dataset=birds_shift", "output=out.json", *shift)
    assert status == 0, errors
    assert "largest class alone" in errors
    found = json.loads(Path("out.json").read_text())
    model = cbm.load("one")
    card = model.card("birds_shift", shift[0].removeprefix("dataset.root="))
    card.args.update({s.split("=")[0].removeprefix("dataset.args."): int(s.split("=")[1]) for s in shift[1:]})
    _, data = model.read(("val", "test"), dataset=card, cache=cache.removeprefix("cache="))

    def accuracy(cuts: dict[str, float]) -> float:
        right = []
        for k, truth in match_concepts(model.bank.texts, data.concept_names):
            shown = data.test.concepts[:, truth] == 1
            if 0 < int(shown.sum()) < len(shown):
                score = data.test.x @ model.model.concepts[k]
                right.append(float(((score > cuts[model.bank.texts[k]]) == shown).double().mean()))
        return sum(right) / len(right)

    assert found["test/concept_accuracy"] == pytest.approx(accuracy(kept), abs=1e-4)
    assert accuracy(model.cut_points()) == accuracy(kept)
    trained = json.loads(Path("one/metrics.json").read_text())["test/concept_accuracy"]
    status, errors = command("eval", "run=one", cache, "output=home.json")
    assert json.loads(Path("home.json").read_text())["test/concept_accuracy"] == pytest.approx(trained)


def test_cut_points_that_are_damaged_or_gone(tmp_path: Path):
    model = cbm.TrainedModel.__new__(cbm.TrainedModel)
    model.path, model.bank = tmp_path, None
    for damage in ([1], {"red": "high"}, 3):
        model.about = {"cut_points": damage}
        with pytest.raises(cbm.UserError, match="'cut_points' is not names and numbers"):
            model.cut_points()
    model.about = {"cut_points": {"red": 1}}
    assert model.cut_points() == {"red": 1.0}


def test_the_largest_class_is_said_beside_the_accuracy(command, tmp_path: Path):
    for name, count in zip(COLOURS, (40, 8, 8)):
        for i in range(count):
            paint(tmp_path / "pictures" / name / f"{i}.png", COLOURS[name], seed=i + 100 * count)
    settings = [s for s in QUICK if "max_epochs" not in s]
    arguments = [
        "dataset=folder",
        "dataset.root=pictures",
        "method=posthoc",
        "run_dir=one",
        "controls=false",
        *settings,
    ]
    status, errors = command("train", *arguments)
    assert status == 0, errors
    labels = cbm.load("one").split("test").y
    expected = float(torch.bincount(labels).max() / len(labels))
    line = next(line for line in errors.splitlines() if line.startswith("  test accuracy"))
    said = f"of {len(labels)} images; largest class alone {100 * expected:.1f}%"
    assert said in line
    macro = 100 * json.loads(Path("one/metrics.json").read_text())["test/accuracy_macro"]
    assert f"  mean of the classes {macro:.1f}%" in re.sub(r"(\S) +", r"\1 ", errors)
    page = Path("one/report.html").read_text()
    assert said in page
    assert re.search(rf"<b>{macro:.1f}%<i>[\d.]+ to [\d.]+%</i></b><span>mean of the classes</span>", page)


def test_checks_say_what_they_do(module, colour_folder: Path):
    status, out, errors = module("datasets", "check", "folder", "--root", str(colour_folder))
    assert status == 0, errors
    assert "folder: reading the lists" in errors
    assert "folder: opening a sample of 60 images" in errors
