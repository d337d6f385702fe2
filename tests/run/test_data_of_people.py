"""What a run makes of images as people have them: lost ones, copies, sets to evaluate on."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from birds_run import QUICK
from conftest import COLOURS, one_line, paint

import cbm

PLAIN = ["method=linear_probe", *QUICK[:2], "cache=cache", "report=false", "controls=false", "nec=[]"]


def train(command, root: Path, *more: str) -> tuple[int, str]:
    return command("train", "dataset=folder", f"dataset.root={root}", "run_dir=run", *PLAIN, *more)


def metrics() -> dict[str, float]:
    return json.loads(Path("run/metrics.json").read_text())


def test_too_many_lost_images_end_a_run(colour_folder: Path, command):
    for name in COLOURS:
        for i in range(3):
            (colour_folder / name / f"0{i}.png").write_bytes(b"lost")
    message = one_line(train(command, colour_folder))
    assert "image(s) cannot be read (" in message
    assert "0.png'" in message
    assert "at most 1.0% are skipped: repair them, or say dataset.max_skipped=" in message
    assert "dataset.max_skipped=2.0: expected a share" in one_line(
        train(command, colour_folder, "dataset.max_skipped=2")
    )


def test_lost_images_are_counted_and_said(colour_folder: Path, command):
    for name in COLOURS:
        (colour_folder / name / "03.png").write_bytes(b"lost")
    status, errors = train(command, colour_folder, "dataset.max_skipped=0.5", "report=true")
    assert status == 0, errors
    found = metrics()
    lost = {split: found[f"data/n_skipped_{split}"] for split in ("train", "val", "test")}
    assert sum(lost.values()) == 3
    assert sum(found[f"data/n_{split}"] for split in lost) == 57
    split = next(split for split in lost if lost[split])
    assert errors.count("could not be read and") == sum(count > 0 for count in lost.values())  # a line for each split
    page = Path("run/report.html").read_text()
    assert f"{split} images could not be read" in page
    assert all(page.count(f"{name}/03.png") == 1 for name in COLOURS)


def test_a_run_says_what_is_doubtful_once(colour_folder: Path, command, caplog: pytest.LogCaptureFixture):
    for split, start, count in (("train", 0, 12), ("val", 12, 4), ("test", 16, 4)):
        for name in COLOURS:
            for i in range(start, start + count):
                target = colour_folder.parent / "set" / split / name / f"{i}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(colour_folder / name / f"{i:02d}.png", target)
    root = colour_folder.parent / "set"
    shutil.copy(root / "train/red/0.png", root / "test/red/copy.png")
    (root / "train/red/a.cr2").write_bytes(b"raw")
    status, errors = train(command, root)
    assert status == 0, errors
    text = " ".join(errors.split())
    assert text.count("1 image(s) of test have the same content as one of train: 'test/red/copy.png'") == 1
    assert text.count("1 file(s) are not read as images: 1 .cr2") == 1


@pytest.mark.parametrize("layout", ["undivided", "test only", "csv", "csv of test rows"])
def test_images_for_evaluation_are_all_measured(colour_folder: Path, command, layout: str):
    assert train(command, colour_folder)[0] == 0
    other = colour_folder.parent / "other"
    for c, (name, colour) in enumerate(COLOURS.items()):
        for i in range(10):
            paint(other / ("test" if layout == "test only" else "") / name / f"{i}.png", colour, 500 + 100 * c + i)
    kind, split = "csv" if layout.startswith("csv") else "folder", layout == "csv of test rows"
    if kind == "csv":
        lines = [f"{name}/{i}.png,{name}{',test' * split}" for name in COLOURS for i in range(10)]
        (other / "images.csv").write_text("\n".join([f"path,label{',split' * split}", *lines]))
    status, errors = command("eval", "run=run", f"dataset={kind}", f"dataset.root={other}", "cache=cache")
    assert status == 0, errors
    (file,) = Path("run/eval").glob("*.json")
    assert json.loads(file.read_text())["data/n_test"] == 30
    (other / "images.csv").unlink(missing_ok=True)
    shutil.rmtree(next(path for path in (other / "test" / "red", other / "red") if path.is_dir()))  # not all classes
    assert command("eval", "run=run", "dataset=folder", f"dataset.root={other}", "cache=cache")[0] == 0


def test_images_that_were_trained_on_are_not_measured(colour_folder: Path, command):
    assert train(command, colour_folder)[0] == 0
    status, errors = command("eval", "run=run", "dataset=folder", f"dataset.root={colour_folder}", "cache=cache")
    assert status == 0, errors
    assert json.loads(next(Path("run/eval").glob("*.json")).read_text())["data/n_test"] == 12
    assert "was trained on these images: only those of its own splits are measured" in " ".join(errors.split())


def test_a_set_without_training_images_is_not_trained_on(colour_folder: Path, command):
    root = colour_folder.parent / "set"
    shutil.copytree(colour_folder, root / "test")
    assert "has no pictures to train on: it is for evaluation" in one_line(train(command, root))


def test_an_image_in_two_splits_is_not_trained_on(colour_folder: Path, command):
    lines = [f"{name}/{i:02d}.png,{name},{'train' if i < 15 else 'test'}" for name in COLOURS for i in range(20)]
    lines.append("red/00.png,red,test")
    (colour_folder / "images.csv").write_text("\n".join(["path,label,split", *lines]))
    message = one_line(train(command, colour_folder, "dataset=csv"))
    assert "1 picture(s) of test are in train too: 'red/00.png'" in message


def test_a_run_of_before_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    from conftest import PROJECT

    shutil.copytree(PROJECT / "tests/fixtures/runs_f47ba49/labo", tmp_path / "old")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            cbm.load(tmp_path / "old")
    assert caplog.text.count("was made by version 1 of how images are read, this is version 2") == 1
    assert "train it again" in caplog.text


def test_every_door_reads_the_same(colour_folder: Path, command, tmp_path: Path):
    """A picture with 16 bits, turned, or transparent, is as its plain copy to predict, explorer, heat map, report."""
    from PIL import Image

    from cbm.app import Explorer
    from cbm.data.images import ImageFiles
    from cbm.report.thumbnails import thumbnail

    assert train(command, colour_folder, "method=zero_shot")[0] == 0
    plain = np.asarray(Image.linear_gradient("L").resize((24, 24)))
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(plain).save(tmp_path / "plain.png")
    Image.fromarray(plain.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(plain).transpose(Image.Transpose.ROTATE_180).save(tmp_path / "turned.png", exif=exif)
    hidden = np.dstack([plain, plain, plain, np.where(plain == 255, 0, 255)])
    hidden[plain == 255] = 0
    Image.fromarray(hidden.astype(np.uint8)).save(tmp_path / "clear.png")
    model, explorer = cbm.load("run"), Explorer("run", Path("cache"))
    names = ["plain.png", "deep.png", "turned.png", "clear.png"]
    paths = [tmp_path / name for name in names]
    for features in (
        model.predict(paths).features,
        model.predict([Image.open(path) for path in paths]).features,
        np.stack([explorer.read(path).x for path in paths]),
    ):
        for row in features[1:]:
            np.testing.assert_allclose(row, features[0], atol=1e-6)
    images = ImageFiles(tmp_path, names)
    assert len({thumbnail(images, row).uri for row in range(4)}) == 1
    concept = model.bank.texts[0]
    maps = [model.heat_map(path, concept) for path in paths]
    for each in maps[1:]:
        np.testing.assert_allclose(each.values, maps[0].values, atol=1e-5)
        np.testing.assert_array_equal(np.asarray(each.picture), np.asarray(maps[0].picture))


def test_settings_of_a_reader_that_its_card_does_not_name(colour_folder: Path, command):
    rows = [f"{file.relative_to(colour_folder)},{file.stem}" for file in sorted(colour_folder.rglob("*.png"))]
    (colour_folder / "images.csv").write_text("path,film\n" + "\n".join(rows) + "\n")
    assert train(command, colour_folder, "dataset.args.subject=film", "shots=1")[0] == 0
    assert "subject: film" in Path("run/config.yaml").read_text()
    shutil.rmtree("run")
    assert train(command, colour_folder, r"dataset.args.subject_pattern=(\d+)[.]png", "shots=1")[0] == 0
    assert r"subject_pattern: (\d+)[.]png" in Path("run/config.yaml").read_text()
    message = one_line(train(command, colour_folder, "dataset.args.subjct=film"))
    assert "unknown setting 'dataset.args.subjct' of reader 'folder': did you mean 'subject'" in message
    message = one_line(command("eval", "run=run", "dataset.args.subject=film"))
    assert "'dataset.args.subject' belongs to a dataset: say dataset=... too" in message


@pytest.mark.parametrize(("folders", "said"), [
    (("RED", "Green ", "blue"), "'Green' is 'green', 'RED' is 'red'"),
    (("red", "GREEN", "_Blue"), "'GREEN' is 'green', '_Blue' is 'blue'"),
])  # fmt: skip
def test_classes_in_another_spelling(colour_folder: Path, command, folders: tuple[str, ...], said: str):
    assert train(command, colour_folder, "method=zero_shot")[0] == 0
    found = {}
    for kind, names in (("same", tuple(COLOURS)), ("other", folders)):
        root = colour_folder.parent / kind
        for name, colour in zip(names, COLOURS.values()):
            for i in range(6):
                paint(root / name / f"{i}.png", colour, 700 + i)
        status, errors = command(
            "eval", "run=run", "dataset=folder", f"dataset.root={root}", "cache=cache", "output=o.json"
        )
        assert status == 0, errors
        values = json.loads(Path("o.json").read_text())
        drawn = ("area_random", "area_other")  # an order of the concepts, or another picture, for every picture in turn
        found[kind] = {key: value for key, value in values.items() if not key.endswith(drawn)}
        text = " ".join(errors.split())
        assert text.count(f"matched without regard to case, underscores and spaces: {said}") == (kind == "other")
    assert found["same"] == pytest.approx(found["other"])  # the order of the images is another, and so are sums


@pytest.mark.parametrize("folders", [("Red", "RED"), ("redd",)])
def test_classes_that_cannot_be_told_are_not_guessed(colour_folder: Path, command, folders: tuple[str, ...]):
    assert train(command, colour_folder, "method=zero_shot")[0] == 0
    for name in folders:
        paint(colour_folder.parent / "other" / name / "0.png", COLOURS["red"], 700)
        paint(colour_folder.parent / "other" / "blue" / "0.png", COLOURS["blue"], 701)
    message = one_line(command("eval", "run=run", "dataset=folder", "dataset.root=other", "cache=cache"))
    assert f"has class '{max(folders) if len(folders) == 1 else min(folders)}', which the model does not" in message
    assert "did you mean 'red'" in message


def test_two_classes_of_a_model_in_one_spelling():
    from cbm.data import ImageDataset
    from cbm.data.dataset import Split
    from cbm.data.encoded import reorder_classes
    from cbm.data.images import ImageFiles

    def labels(names: list[str], classes: list[str]) -> list[str]:
        count = range(len(names))
        split = Split(ImageFiles(Path(), [f"{i}" for i in count]), np.arange(len(names)))
        found = reorder_classes(ImageDataset("set", names, {"test": split}), classes)
        assert found.classes == classes
        return [classes[i] for i in found.splits["test"].labels]

    assert labels(["red_fox", "FOX"], ["fox", "red fox"]) == ["red fox", "fox"]
    assert labels(["cat", "Cat"], ["Cat", "cat"]) == ["cat", "Cat"]
    for names in (["CAT"], ["cat", "CAT"]):
        with pytest.raises(cbm.UserError, match="has class 'CAT', which the model does not know: did you mean"):
            labels(names, ["Cat", "cat"])
