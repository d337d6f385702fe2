"""Concepts from a detector that was asked by class: what calling the rest absent does, and what is said about it."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from birds_run import COUNTS, small
from detected_pictures import detected, spoken, write_table
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


def by_clip(**settings):
    data, bank = spoken()
    method = create_method({**QUICK, "labels": "pseudo", **settings})
    made = method.build(data, bank, 100.0)
    columns = [data.concept_names.index(text) for text in made.bank.texts]
    seen = float(auroc(made.model.scores(data.test.x), data.test.concepts[:, columns]).mean())
    return method, made, seen


def test_without_a_detector_clip_says_what_a_picture_shows(caplog):
    """Gated as published its labels make class detectors of the concepts; with what was not asked unknown they do not.
    The threshold of raw cosines is their median here, since planted texts have other cosines than CLIP's."""
    data, bank = spoken()
    median = float((data.train.x @ bank.embeddings.T).median())
    caplog.set_level(logging.INFO)
    method, made, right = by_clip()
    assert "CLIP's own opinion" in caplog.text
    assert "pseudo-labels: about 1500 of 1500 training pictures" in caplog.text
    assert "concept labels follow the class" not in caplog.text
    assert made.bank.texts == bank.texts
    caplog.clear()
    published, gated, wrong = by_clip(fidelity="released", threshold=median)
    assert right >= wrong + 0.1
    assert published.facts["val_accuracy"] > published.facts["val_accuracy_true_concepts"] + 0.2
    assert "concept labels follow the class: validation accuracy 0." in caplog.text
    assert method.facts["asked_follows_class"] == published.facts["asked_follows_class"] == 1


def test_raw_cosines_leave_out_what_their_texts_share_less_with_all():
    """A cutoff on raw cosines judges how much of the text is common; from the median every concept counts alike."""
    data, bank = spoken()
    high = float((data.train.x @ bank.embeddings.T).mean(dim=0).min()) + 0.3
    assert len(by_clip(fidelity="released", threshold=high)[1].bank) < len(bank)
    assert len(by_clip()[1].bank) == len(bank)


def test_classes_share_what_scores_alike(caplog):
    data, bank = spoken()
    caplog.set_level(logging.INFO)
    alone = next(one.classes for one in bank.concepts if len(one.classes) == 1)  # so it is not its last
    twin = replace(bank.concepts[3], text="the same as 3", classes=alone)
    embeddings = torch.cat([bank.embeddings, bank.embeddings[3:4]])
    doubled = replace(bank, concepts=(*bank.concepts, twin), embeddings=embeddings)
    method = create_method({**QUICK, "labels": "pseudo", "share": True})
    made = method.build(data, doubled, 100.0)
    assert "the same as 3" not in made.bank.texts
    merged = made.bank.concepts[made.bank.index("thing 3")]
    assert merged.provenance["merged"] == ["the same as 3"]
    assert set(merged.classes) == {*bank.concepts[3].classes, *alone}
    assert "scores like 'thing 3'" in {one.text: one.reason for one in made.bank.dropped}["the same as 3"]
    assert "1 of 31 merged into one that scores alike: 'the same as 3 -> thing 3'" in caplog.text
    assert made.bank.owners_chosen  # on the training pictures, so that owners are no evidence


def test_errors_are_one_line(tmp_path):
    for settings, said in (
        ({"labels": "clip"}, "method.labels=clip"),
        ({"share": True}, "method.share=true .*: say method.labels=pseudo"),
        ({"labels": "pseudo", "detections": "d.csv"}, "reads no method.detections"),
        ({"labels": "pseudo", "merge_cutoff": 2.0}, "method.merge_cutoff=2"),
        ({"own_concepts": 0}, "method.own_concepts=0"),
    ):
        with pytest.raises(UserError, match=said):
            create_method({"name": "grounded", **settings})
    with pytest.raises(UserError, match="method.labels=pseudo asks CLIP .*choose .* another encoder"):
        create_method({"name": "grounded", "labels": "pseudo"}).build(*detected(), 100.0)
    with pytest.raises(UserError, match=r"method.threshold=0.99: no concept of bank 'things' scores as much"):
        by_clip(fidelity="released", threshold=0.99)
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
