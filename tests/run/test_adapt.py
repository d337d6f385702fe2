"""``python -m cbm adapt``."""

import json
import math

import pytest
from birds_run import COUNTS, QUICK, small
from explored_run import trained

import cbm
from cbm import config
from cbm.app import Explorer
from cbm.app.adapt import suggest
from cbm.editing import Edit, EditSet, Proposal, load_edits
from cbm.run.adapt import overlap


@pytest.fixture
def small_cards(monkeypatch: pytest.MonkeyPatch):
    """Cards of birds whose sets are as small as those of the run."""
    whole = config.load_card

    def load(name: str):
        card = whole(name)
        if name.startswith("birds"):
            card.args.update(COUNTS)
            card.root = small()[0].removeprefix("dataset.root=")
        return card

    monkeypatch.setattr(config, "load_card", load)


def test_another_camera(command, module, small_cards, tmp_path):
    status, errors = command("train", *small(), *QUICK, "run_dir=one", "report=false", "controls=false", "nec=[]")
    assert status == 0, errors
    cache = small()[1].removeprefix("cache=")

    def adapt(*arguments: str) -> tuple[int, str, str]:
        return module("adapt", *arguments, "--cache", cache)

    everything = ("--draws", "2", "--unchecked", "--editors", "test_time,combined,prune,recentre,conda,refit")
    status, out, errors = adapt("one", "birds_shift", "--shots", "2", *everything, "--out", "x.yaml")
    assert status == 0, errors
    for name in ("unedited", "combined", "test_time", "prune", "recentre", "conda", "refit"):
        assert name in out
    for word in ("balanced", "95% interval over the tested images", "standard error over draws, which share most"):
        assert word in " ".join(out.split())
    status, out, errors = adapt("one", "birds_shift", "--shots", "2", "--editors", "refit", "--json")
    assert status == 0, errors
    (draw,) = json.loads(out)
    for name in ("unedited", "refit"):
        for key, values in (("accuracy", draw["target"]), ("accuracy_macro", draw["balanced"])):
            low, high = draw["intervals"][name][key]
            assert low < values[name] < high
    assert load_edits("x.yaml").domains <= {"birds_shift"}
    for arguments, message in (
        (("one", "birds_shift", "--unchecked", "--guard", "strikt"), "unknown guard 'strikt': did you mean 'strict'"),
        (("one", "birds_shfit"), "unknown dataset 'birds_shfit': did you mean 'birds_shift'"),
        (("one", "birds_shift", "--shots", "500"), "labelled test pictures: shots=500 is more than there is"),
        (("one", "birds_shift", "--unchecked", "--protect", "no such concept"), "no such concept"),
        (("one", "birds_shift", "--editors", "refitt"), "unknown editor 'refitt': did you mean 'refit'"),
        (
            ("one", "birds_shift", "--shots", "2", "--unchecked", "--editors", "refit", "--out", "x.yaml"),
            "cannot be said as edits",
        ),
    ):
        status, _, errors = adapt(*arguments)
        assert status == 2
        assert message in errors
    (tmp_path / "one" / "source_card.safetensors").unlink()
    status, _, errors = adapt("one", "birds_shift", "--shots", "2")
    assert status == 2
    assert "no source card" in errors


def test_another_camera_that_saw_some_of_the_classes(command, module, small_cards, tmp_path):
    """Also in another spelling: 3 of 20 species, named in capitals."""
    source = trained("labo")
    (tmp_path / "one").symlink_to(source)
    birds = cbm.load(source).read(("test",), cache=source.parent / "cache")[0]
    images = birds.splits["test"]
    for row, label in enumerate(images.labels.tolist()):
        if label in (2, 5, 11):
            target = tmp_path / "cells" / birds.classes[label].upper().replace(" ", "_") / f"{row}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            images.images.open(row).save(target)
    arguments = ("adapt", "one", "folder", "--root", "cells", "--shots", "2", "--draws", "2")
    status, out, errors = module(*arguments, "--cache", str(source.parent / "cache"))
    assert status == 0, errors
    text = " ".join(errors.split())
    assert text.count("17 of 20 classes have no images here and are left out: ") == 1
    assert text.count("classes are matched without regard to case, underscores and spaces: ") == 1
    assert all(name in out for name in ("unedited", "test_time", "prune", "recentre", "conda", "refit"))
    settings = ("run=one", "dataset=folder", f"dataset.root={tmp_path / 'cells'}", small()[1])
    status, errors = command("eval", *settings, "editor=test_time", "editor.shots=2", "output=out.json")
    assert status == 0, errors
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["data/n_test"] == 3 * (COUNTS["n_test"] - 2)
    status, errors = command("eval", *settings, "output=plain.json")
    assert status == 0, errors
    plain = json.loads((tmp_path / "plain.json").read_text())
    model = cbm.load(source)
    split = model.split("test", dataset="folder", root=tmp_path / "cells", cache=source.parent / "cache")
    right = model.predict_features(split.x).logits.argmax(dim=1) == split.y
    means = [float(right[split.y == label].double().mean()) for label in (2, 5, 11)]
    assert plain["test/accuracy_macro"] == pytest.approx(sum(means) / 3)
    explorer = Explorer("one", source.parent / "cache", dataset="folder", root=tmp_path / "cells")
    assert suggest(explorer, shots=2).tested == found["data/n_test"]
    (tmp_path / "alone").mkdir()
    (tmp_path / "cells" / birds.classes[5].upper().replace(" ", "_")).rename(tmp_path / "alone" / birds.classes[5])
    arguments = ("adapt", "one", "folder", "--root", "alone", "--shots", "2")
    status, out, errors = module(*arguments, "--cache", str(source.parent / "cache"))
    assert status == 0, errors


def test_overlap_of_draws():
    def draw(*concepts: str) -> Proposal:
        return Proposal(None, "", EditSet(tuple(Edit("mask", text) for text in concepts)))

    assert overlap([draw("1", "2"), draw("2", "3"), draw()]) == (1 / 3 + 0 + 0) / 3
    assert math.isnan(overlap([draw(), draw()]))
