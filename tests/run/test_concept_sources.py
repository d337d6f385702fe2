"""Where concepts come from besides phrases and a CLIP: pictures that show them, through the command line."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from birds_run import QUICK
from conftest import COLOURS, one_line, paint

import cbm
from cbm.concepts import load_bank

SHOWS = {"red": (1, 0), "green": (0, 1), "blue": (0, 1)}  # warm, cold
RESNET = ["encoder.model=timm:resnet18", "encoder.pretrained=random"]


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """``colours/images/CLASS/*.png`` and a table that knows which are warm and which cold; blue's cells are empty."""
    root = tmp_path / "colours"
    rows = []
    for c, (name, colour) in enumerate(COLOURS.items()):
        for i in range(10):
            file = Path("images") / name / f"{i}.png"
            paint(root / file, colour, 50 * c + i)
            split = "train" if i < 6 else "val" if i < 8 else "test"
            rows.append((file, name, split, *(("", "") if name == "blue" and i == 0 else SHOWS[name])))
    with (root / "images.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split", "warm", "cold"), *rows])
    return root


def table(colours: Path) -> list[str]:
    return ["dataset=csv", f"dataset.root={colours}", *common(colours)]


def folder(colours: Path) -> list[str]:
    return ["dataset=folder", f"dataset.root={colours / 'images'}", *common(colours)]


def common(colours: Path) -> list[str]:
    return [f"cache={colours.parent / 'cache'}", *QUICK, "report=false", "controls=false"]


def run(command, *arguments: str) -> dict[str, float]:
    """The metrics of a run that must succeed."""
    status, errors = command("train", *arguments, "run_dir=run")
    assert status == 0, errors
    metrics = json.loads(Path("run/metrics.json").read_text())
    shutil.rmtree("again", ignore_errors=True)
    Path("run").rename("again")
    return metrics


def test_the_run_teaches_its_own_concepts(command, colours: Path):
    """An image-only encoder gets a bottleneck from the table's columns; its bank serves another run, by its path."""
    first = run(command, *table(colours), *RESNET, "concepts=cav", "controls=true")
    bank = load_bank(Path("again/bank"))
    assert {c.text: set(c.classes) for c in bank.concepts} == {"warm": {"red"}, "cold": {"green", "blue"}}
    assert all(c.provenance["cav"]["heldout_accuracy"] == c.score for c in bank.concepts)
    assert {"integrity/random_accuracy", "integrity/shuffled_accuracy", "test/concept_auroc"} <= set(first)
    model = cbm.load("again")
    assert model.bank.encoder == model.encoder.fingerprint
    assert model.predict([colours / "images" / "red" / "0.png"]).scores.shape == (1, 2)
    status, errors = command("eval", "run=again", f"cache={colours.parent / 'cache'}", "output=seen.json")
    assert status == 0, errors
    assert json.loads(Path("seen.json").read_text())["test/accuracy"] == first["test/accuracy"]

    Path("again").rename("teacher")
    second = run(command, *table(colours), *RESNET, "concepts=teacher/bank")
    assert second["test/accuracy"] == first["test/accuracy"]
    assert "embedding space of another encoder" in one_line(command("train", *table(colours), "concepts=teacher/bank"))


def test_few_shots_teach_from_the_shots(command, colours: Path):
    run(command, *table(colours), "concepts=cav", "shots=4")
    bank = load_bank(Path("again/bank"))
    warm = bank.concepts[bank.index("warm")].provenance["cav"]
    assert (warm["positives"], warm["negatives"]) in ((2, 4), (2, 3))  # half of 4 and of 8 (one may be unknown)


def test_another_card_teaches(command, colours: Path):
    """The run's own data set knows no concepts: nobody owns those of the card, and the method finds owners."""
    run(command, *folder(colours), "concepts=cav", "concepts.cav.dataset=csv", f"concepts.cav.root={colours}")
    bank = load_bank(Path("again/bank"))
    assert set(bank.texts) == {"warm", "cold"}
    assert bank.source == "csv"
    assert set(bank.classes) == set(COLOURS)
    other = ["dataset.args.n_train=2", "concepts=again/bank"]  # a bank of CAVs may go to a data set with other classes
    arguments = [f"dataset.root={colours.parent / 'birds'}", "dataset.args.n_val=2", "dataset.args.n_test=2"]
    metrics = run(command, *arguments, *common(colours), *other)
    assert metrics["model/n_concepts"] == 2


@pytest.mark.parametrize("paired", [True, False])
def test_a_folder_of_pictures_teaches(command, colours: Path, tmp_path: Path, paired: bool):
    for concept, colour in (("reddish", "red"), ("bluish", "blue")):
        for i in range(6):
            sides = {"positives": COLOURS[colour], "negatives": COLOURS["green"]} if paired else {".": COLOURS[colour]}
            for side, painted in sides.items():
                paint(tmp_path / "shown" / concept / side / f"{i}.png", painted, 900 + i)
    run(command, *folder(colours), "concepts=cav", "concepts.cav.folder=shown", "concepts.control=shuffled")
    assert set(load_bank(Path("again/bank")).texts) == {"reddish", "bluish"}


def test_methods_without_concepts_ignore_it(command, colours: Path):
    arguments = [a for a in folder(colours) if not a.startswith("method.")]
    run(command, *arguments, "concepts=cav", "method=linear_probe")


def test_what_can_be_wrong_with_pictures_of_concepts(command, colours: Path, tmp_path: Path):
    def fails(*arguments: str) -> str:
        return one_line(command("train", *folder(colours), "concepts=cav", *arguments))

    assert "concepts.cav.dataset=CARD" in fails()
    assert "concepts.cav.folder=DIR" in fails("method.concepts_per_class=2")
    assert "unknown dataset 'bird': did you mean 'birds'" in fails("concepts.cav.dataset=bird")
    assert "say concepts.cav.root=" in fails("concepts.cav.dataset=csv")
    assert "say that too" in fails("concepts.cav.root=colours")
    assert "say one" in fails("concepts.cav.folder=colours", "concepts.cav.dataset=birds")
    assert "did you mean 'colours'" in fails("concepts.cav.folder=colour")
    assert "unknown setting 'concepts.cav.foldr': did you mean 'concepts.cav.folder'" in fails("concepts.cav.foldr=x")
    assert "svm_c=-1.0 must be above 0" in fails(
        "concepts.cav.dataset=csv", f"concepts.cav.root={colours}", "concepts.cav.svm_c=-1"
    )
    (tmp_path / "shown" / "reddish").mkdir(parents=True)
    assert "needs two concept folders" in fails("concepts.cav.folder=shown")
    assert "concepts=cav" in one_line(command("train", *folder(colours), *RESNET))  # the way out of having no text


LABEL_FREE = ["method=label_free", "method.n_lambdas=8", "concepts=concepts/general.txt"]
TAUGHT = [*LABEL_FREE, *RESNET, "teacher=tiny_clip", "teacher.num_workers=0", "method.interpretability_cutoff=0.2"]


def untrained(arguments: list[str]) -> list[str]:
    return [a for a in arguments if not a.startswith("method.max_epochs")]


def test_a_teacher_lends_its_concepts_to_any_backbone(command, colours: Path):
    """Afterwards the backbone alone is needed: to evaluate, to use from Python, to write the report again."""
    (colours / "images" / "red" / "5.png").write_bytes(b"")
    arguments = [*untrained(folder(colours)), *TAUGHT]
    first = run(command, *arguments, "controls=true")
    assert "integrity/random_accuracy" in first
    assert first["data/n_train"] + first["data/n_val"] + first["data/n_test"] == 29
    model = cbm.load("again")
    assert model.bank.encoder == model.encoder.fingerprint
    assert model.bank.directions().shape == (first["model/n_concepts"], model.encoder.dim)
    assert all(0.2 < c.score <= 1 for c in model.bank.concepts)
    assert len(model.predict([colours / "images" / "red" / "0.png"]).labels) == 1
    shutil.rmtree(colours.parent / "cache" / "text")  # nobody reads phrases any more
    status, errors = command("eval", "run=again", f"cache={colours.parent / 'cache'}", "output=seen.json")
    assert status == 0, errors
    assert json.loads(Path("seen.json").read_text())["test/accuracy"] == first["test/accuracy"]
    from cbm.run import rewrite_report

    assert rewrite_report(Path("again"), colours.parent / "cache").is_file()


def test_a_teacher_may_be_any_model_and_the_encoder_itself_is_none(command, colours: Path):
    arguments = [*untrained(folder(colours)), *LABEL_FREE, "method.duplicate_cutoff=null"]
    alone = run(command, *arguments)
    same = run(command, *arguments, "teacher.model=local-dir:cbm/encoders/tiny_clip", "teacher.num_workers=0")
    cost = ("time/", "memory/")
    differing = {k for k in alone | same if alone.get(k) != same.get(k) and not k.startswith(cost)}
    assert not differing
    assert {c.score for c in load_bank(Path("again/bank")).concepts} == {1.0}


def test_what_can_be_wrong_with_a_teacher(command, colours: Path):
    def fails(*arguments: str) -> str:
        return one_line(command("train", *untrained(folder(colours)), *arguments))

    assert "method=labo has no use for a teacher" in fails("teacher=tiny_clip")
    assert "unknown teacher 'tiny_clap': did you mean 'tiny_clip'" in fails(*LABEL_FREE, "teacher=tiny_clap")
    assert "unknown setting 'teacher.modl': did you mean 'teacher.model'" in fails(*LABEL_FREE, "teacher.modl=x")
    assert "'teacher.model' is needed" in fails(*LABEL_FREE, "teacher.pretrained=openai")
    assert "teacher.precision=fp8: " in fails(*TAUGHT, "teacher.precision=fp8")
    assert "say teacher=NAME" in fails(*LABEL_FREE, *RESNET)
    taught_by_resnet = ["teacher.model=timm:resnet18", "teacher.pretrained=random"]
    assert "teacher 'timm:resnet18/random' reads images only" in fails(*LABEL_FREE, *taught_by_resnet)
    assert "choose a bank of phrases" in fails("method=label_free", "concepts=cav")
    assert "method.interpretability_cutoff=1 leaves 0 of" in fails(*TAUGHT[:-1], "method.interpretability_cutoff=1")
