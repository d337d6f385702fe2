"""Concepts from a detector that was asked by class: what calling the rest absent does, and what is said about it."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from birds_run import COUNTS, small
from detected_pictures import detected, write_table
from sklearn.linear_model import LogisticRegression

from cbm.concepts.detections import detected_labels, owned_concepts, read_detections
from cbm.data import read_dataset
from cbm.errors import UserError
from cbm.methods import create_method
from cbm.methods.grounded import explained_by_class
from cbm.metrics.multilabel import auroc

QUICK = {"name": "grounded", "n_lambdas": 12, "tol": 1e-3}


def built(file, **settings):
    data, bank = detected()
    method = create_method({**QUICK, "detections": str(file), **settings})
    made = method.build(data, bank, 100.0)
    return method, made.model, made.bank


def mean_auroc(model, bank) -> float:
    data, _ = detected()
    columns = [data.concept_names.index(text) for text in bank.texts]
    return float(auroc(model.scores(data.test.x), data.test.concepts[:, columns]).mean())


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    return {
        (gated, asked): write_table(folder / f"{gated}{asked}.csv", gated=gated, asked=asked)
        for gated, asked in ((True, False), (True, True), (False, True))
    }


def test_unknown_beats_absent_and_absent_is_found_out(tables, caplog):
    caplog.set_level(logging.INFO)
    unknown, model, bank = built(tables[True, False])
    right = mean_auroc(model, bank)
    assert "which concepts were looked for follows the class" in caplog.text
    assert "taken as unknown" in caplog.text
    assert "concept labels follow the class" not in caplog.text
    caplog.clear()
    absent, gated_model, gated_bank = built(tables[True, False], fidelity="released")
    assert right >= mean_auroc(gated_model, gated_bank) + 0.05
    assert "taken as absent without a look, so concepts learn which classes own them" in caplog.text
    assert "concept labels follow the class: validation accuracy 0." in caplog.text
    assert absent.facts["val_accuracy"] > absent.facts["val_accuracy_true_concepts"] + 0.2
    assert unknown.facts["labels_asked"] == absent.facts["labels_asked"]
    assert unknown.facts["asked_follows_class"] > 0.9


def test_a_detector_that_was_asked_about_everything_is_no_suspect(tables, caplog):
    caplog.set_level(logging.INFO)
    method, model, bank = built(tables[False, True])
    assert mean_auroc(model, bank) > mean_auroc(*built(tables[True, True])[1:])
    assert method.facts["asked_follows_class"] == 0
    assert method.facts["labels_asked"] == 1
    absent = built(tables[False, True], fidelity="released")[1]
    torch.testing.assert_close(absent(detected()[0].test.x), model(detected()[0].test.x))  # there is nothing unasked


def test_what_is_left_open_is_taken_for_the_concepts_of_the_class(tables):
    """Here that is what was asked: a table that says so gives the same model."""
    (_, model, bank), (_, other, same) = built(tables[True, False]), built(tables[True, True])
    assert bank.texts == same.texts
    torch.testing.assert_close(model.concepts, other.concepts)


def test_concepts_are_the_logistic_regressions_of_their_known_labels(tables):
    method, model, bank = built(tables[False, True])
    data, _ = detected()
    found = read_detections(tables[False, True], bank, data)
    labels = detected_labels(found, "train", owned_concepts(data.train, bank.owners(data.classes)), threshold=0.15,
                             unasked="unknown")  # fmt: skip
    z = ((data.train.x - data.train.x.mean(dim=0)) / data.train.x.std(dim=0)).double().numpy()
    for k in (0, 17):
        reference = LogisticRegression(C=1 / (len(z) * method.facts["concept_l2"]), tol=1e-8, max_iter=1000)
        reference.fit(z, labels[:, k].numpy())
        expected = torch.from_numpy(reference.coef_[0] / data.train.x.std(dim=0).double().numpy())
        assert float(torch.cosine_similarity(model.concepts[k].double(), expected, dim=0)) > 0.9999


def test_concepts_that_were_never_detected_are_left_out(tmp_path):
    data, bank = detected()
    lines = [f"{path},{k % 2},0,1" for k, path in enumerate(data.train.names)]
    (tmp_path / "d.csv").write_text("path,thing 3,thing 5,thing 7\n" + "\n".join(lines))
    _, model, used = built(tmp_path / "d.csv")
    assert used.texts == ["thing 3"]
    reasons = {dropped.text: dropped.reason for dropped in used.dropped}
    assert reasons["thing 5"] == "never detected"
    assert reasons["thing 7"] == "never looked for and not found"
    assert len(model.concepts) == 1


def test_how_far_the_class_decides_is_a_coefficient_of_determination():
    y = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2])
    asked = torch.tensor([[1, 1], [1, 0], [0, 1], [0, 0], [1, 0], [0, 0], [1, 1], [1, 1]]).bool()
    total = between = 0.0
    for k in range(2):
        column = asked[:, k].double()
        total += float((column - column.mean()).square().sum())
        between += sum(
            int((y == c).sum()) * float(column[y == c].mean() - column.mean()) ** 2 for c in y.unique().tolist()
        )
    assert explained_by_class(asked, y, 4) == pytest.approx(between / total, abs=1e-6)
    assert explained_by_class(torch.ones(8, 2).bool(), y, 4) == 0.0


def test_several_labels_per_picture(tables):
    data, bank = detected()
    splits = {
        name: replace(split, y=torch.stack([(split.y < 5).float(), (split.y % 2).float()], dim=1))
        for name, split in data.splits.items()
    }
    many = replace(data, splits=splits, classes=["low", "odd"])
    general = replace(bank, concepts=tuple(replace(concept, classes=()) for concept in bank.concepts))
    method = create_method({**QUICK, "detections": str(tables[False, True])})
    model = method.build(many, general, 100.0).model
    assert float(auroc(model(many.test.x), many.test.y).mean()) > 0.6


def test_a_run_from_the_command_line_that_draws_some_of_the_pictures(command, tmp_path: Path):
    root = Path(small()[0].removeprefix("dataset.root="))
    birds = read_dataset("birds", "birds", root, {"variant": "birds", "seed": 0, "size": 64, **COUNTS})
    lines = ["path,concept,score,asked"]
    for name in ("train", "val"):
        split = birds.splits[name]
        for path, shown in zip(split.images.names, split.concepts):
            lines += [f"{path},{text},{'.9' if c == 1 else ''},1" for text, c in zip(birds.concept_names, shown)]
    (tmp_path / "d.csv").write_text("\n".join(lines))
    quick = [
        "trainer.progress=false",
        "encoder.num_workers=0",
        "nec=[]",
        "controls=false",
        "report=none",
        "shots=4",
        "run_dir=one",
    ]
    status, errors = command("train", *small(), *quick, "method=grounded", "method.detections=d.csv")
    assert status == 0, errors
    metrics = json.loads((tmp_path / "one" / "metrics.json").read_text())
    assert metrics["method/labels_asked"] == 1
    assert metrics["test/concept_auroc"] > 0.7
    (tmp_path / "d.csv").write_text("\n".join([*lines, f"xx.png,{birds.concept_names[0]},1,1"]))
    status, errors = command("train", *small(), *quick, "overwrite=true", "method=grounded", "method.detections=d.csv")
    assert status == 2
    assert "no picture 'xx.png'" in errors


def test_errors_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"method.detections=none.csv: there is no such file"):
        create_method({"name": "grounded", "detections": "none.csv"})
    with pytest.raises(UserError, match="method.threshold=1.5"):
        create_method({"name": "grounded", "threshold": 1.5})
    with pytest.raises(UserError, match="method.fidelity=paper"):
        create_method({"name": "grounded", "fidelity": "paper"})
    data, bank = detected()
    with pytest.raises(UserError, match="say method.detections=FILE"):
        create_method({"name": "grounded"}).build(data, bank, 100.0)
    (tmp_path / "d.csv").write_text("path,concept,score\ntrain/0.png,thing 3,0.1\n")
    with pytest.raises(UserError, match="no concept of bank 'things' is present on one training picture and absent"):
        built(tmp_path / "d.csv")
