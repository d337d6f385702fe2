"""``python -m cbm datasets check``."""

import hashlib
from pathlib import Path

import pytest
from conftest import COLOURS, one_line, paint

from cbm import config


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A card ``three`` of three colours, ten pictures each in train and five in test, with what was published."""
    for c, (name, colour) in enumerate(COLOURS.items()):
        for i in range(15):
            paint(tmp_path / "set" / ("train" if i < 10 else "test") / name / f"{i}.png", colour, 20 * c + i)
    (tmp_path / "set/three.tar").write_bytes(b"an archive")
    md5 = hashlib.md5(b"an archive").hexdigest()
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards/three.yaml").write_text(
        "name: three\nreader: folder\nroot: null\nabout:\n  title: Three colours\n  licence: none\n"
        f"  counts: {{classes: 3, train: 30, test: 15}}\n  md5: {{three.tar: {md5}, gone.tar: abc}}\n"
    )
    monkeypatch.setattr(config, "CARDS", tmp_path / "cards")
    return tmp_path / "set"


def test_all_right(card: Path, module):
    for how in (["--root", str(card)], [f"root={card}"]):
        status, shown, errors = module("datasets", "check", "three", *how)
        assert status == 0, errors
        assert "three: all right" in shown
        assert "note: checksum of 'gone.tar' not compared: the file is not there" in shown
        assert "10 to 10" in shown


def test_the_list(card: Path, module):
    status, shown, _ = module("datasets")
    assert status == 0
    assert "Three colours" in shown
    assert "30 / - / 15" in shown


def test_what_a_card_says(module):
    status, shown, errors = module("datasets", "show", "dtd")
    assert status == 0, errors
    for said in ("Describing textures in the wild", "https://www.robots.ox.ac.uk", "classes 47", "partition 1"):
        assert said in " ".join(shown.split())


def test_what_is_missing_broken_doubtful(card: Path, module):
    (card / "train/red/3.png").unlink()
    (card / "train/red/4.png").unlink()
    (card / "test/blue/12.png").write_bytes(b"cut off")
    (card / "three.tar").write_bytes(b"half of an archive")
    status, shown, errors = module("datasets", "check", "three", "--root", str(card))
    shown = " ".join(shown.split())
    assert status == 1, errors
    assert "three.tar' has the MD5 checksum" in shown
    assert "wrong: train: 28, published are 30 (2 missing); fewest of 'red': 8" in shown
    assert "wrong: test: 1 picture(s) cannot be opened: 'test/blue/12.png (UnidentifiedImageError" in shown
    assert "three: 3 problem(s)" in shown


def test_pictures_that_a_list_names_or_does_not(tmp_path: Path, module):
    for name in "abcd":
        paint(tmp_path / "set" / f"{name}.png", (9, 9, 9), ord(name))
    rows = ["path,label,split", "a.png,x,train", "b.png,y,train", "c.png,x,test", "a.png,x,test"]
    (tmp_path / "set/images.csv").write_text("\n".join(rows))
    status, shown, _ = module("datasets", "check", "csv", f"root={tmp_path / 'set'}")
    shown = " ".join(shown.split())
    assert status == 1
    assert "1 picture(s) of test are in train too: 'a.png'" in shown
    assert "1 picture(s) lie beside the others but are in no split" in shown
    assert "numbers not compared: none are published" in shown


def test_every_picture_is_opened_only_if_asked_for(tmp_path: Path, module):
    for name in ("x", "y"):
        for i in range(150):
            paint(tmp_path / "set" / name / f"{i:03d}.png", (9, 9, 9), i, size=2)
    (tmp_path / "set/x/001.png").write_bytes(b"")
    status, shown, _ = module("datasets", "check", "folder", f"root={tmp_path / 'set'}")
    assert status == 0
    assert "train: 100 of 300 pictures opened (--all opens every one)" in shown
    status, shown, _ = module("datasets", "check", "folder", f"root={tmp_path / 'set'}", "--all")
    assert status == 1
    assert "x/001.png" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["thre"], "unknown dataset 'thre': did you mean 'three'"),
        (["three"], "data set 'three' needs to know where the images are"),
        (["three", "root=/nowhere"], "no folder '/nowhere'"),
        (["three", "rot=/nowhere"], "unknown setting 'rot' of a card: did you mean 'root'"),
        (["three", "/nowhere"], "'/nowhere': expected KEY=VALUE"),
        (["three", "root=/", "args.x=1"], "unknown setting 'dataset.args.x' of reader 'folder'"),
        (["three", "root=/", "val_fraction=half"], "val_fraction=half"),
    ],
)
def test_mistakes_are_one_line(arguments, message: str, card: Path, module):
    status, _, errors = module("datasets", "check", *arguments)
    assert message in one_line((status, errors))


def check(module, *arguments: str) -> tuple[int, list[str]]:
    status, shown, errors = module("datasets", "check", *arguments)
    return status, (errors + shown).splitlines()


def test_what_was_opened_is_what_is_all_right(tmp_path: Path, module):
    for name in ("x", "y"):
        for i in range(75):
            paint(tmp_path / "set" / name / f"{i:03d}.png", (9, 99, 9), ord(name) + 1000 * i, size=3)
    assert (
        check(module, "folder", f"root={tmp_path / 'set'}")[1][-1]
        == "folder: all right in what was opened (100 of 150)"
    )
    assert check(module, "folder", f"root={tmp_path / 'set'}", "--all")[1][-1] == "folder: all right"


def test_small_classes_imbalance_and_odd_pictures_are_said_at_once(tmp_path: Path, module):
    import numpy as np
    from PIL import Image

    root = tmp_path / "set"
    for i in range(25):
        paint(root / "a" / f"{i}.png", (90, 99, 9), i, size=5)
    paint(root / "c" / "0.png", (90, 99, 9), 99, size=5)
    Image.new("RGB", (1, 1), (9, 99, 9)).save(root / "a" / "tiny.png")
    Image.new("RGB", (5, 5), (9, 99, 9)).save(root / "a" / "plain.png")
    Image.fromarray(np.arange(25, dtype=np.uint16).reshape(5, 5) * 100).save(root / "a" / "dark.png")
    (root / "empty").mkdir()
    status, lines = check(module, "folder", f"root={root}")
    text = " ".join(lines)
    assert status == 0
    assert lines[-1] == "folder: no problem, but 6 doubt(s)"
    for said in (
        "1 class(es) have too few images to be divided into 3 splits: 'c (1)'",
        "train is unbalanced: 1 of 'c', 28 of 'a'",
        "1 picture(s) are one pixel wide or high: 'a/tiny.png'",
        "1 picture(s) have one colour only: 'a/plain.png'",
        "1 picture(s) are nearly black",
        "1 folder(s) without images are passed over: 'empty'",
    ):
        assert said in text


def test_copies_and_near_copies(tmp_path: Path, module):
    import numpy as np
    from PIL import Image

    root = tmp_path / "set"
    for k, name in enumerate("ab"):
        for split, start in (("train", 0), ("test", 50)):
            (root / split / name).mkdir(parents=True)
            for i in range(4):
                blocks = np.random.default_rng(100 * k + start + i).integers(0, 256, (3, 3, 3), dtype=np.uint8)
                shown = Image.fromarray(blocks).resize((48, 48), Image.Resampling.NEAREST)
                shown.save(root / split / name / f"{i}.png")
    (root / "test/a/copy.png").write_bytes((root / "train/a/0.png").read_bytes())
    (root / "train/b/wrong.png").write_bytes((root / "train/a/1.png").read_bytes())
    Image.open(root / "train/b/2.png").save(root / "test/b/near.jpg", quality=95)
    status, lines = check(module, "folder", f"root={root}")
    text = " ".join(lines)
    assert status == 1
    assert (
        "wrong: 1 image(s) of test have the same content as one of train: 'test/a/copy.png' = 'train/a/0.png'" in text
    )
    assert (
        "doubt: 1 image(s) have the same content as one of another class: 'train/b/wrong.png' = 'train/a/1.png'" in text
    )
    status, lines = check(module, "folder", f"root={root}", "--near-duplicates", "--similarity", "0.995")
    assert "train and test: 'train/b/2.png' = 'test/b/near.jpg'" in " ".join(lines)
    assert (
        "--similarity 2.0: expected"
        in check(module, "folder", f"root={root}", "--near-duplicates", "--similarity", "2")[1][-1]
    )


def test_subjects_in_two_splits(tmp_path: Path, module):
    for i in range(8):
        paint(tmp_path / "set" / f"{i}.png", (9, 99, 9), i, size=5)
    lines = [f"{i}.png,{'ab'[i % 2]},P{i // 2},{'train' if i < 5 else 'test'}" for i in range(8)]
    (tmp_path / "set/images.csv").write_text("\n".join(["path,label,patient,split", *lines]))
    status, lines = check(module, "csv", f"root={tmp_path / 'set'}", "args.subject=patient")
    assert status == 1
    assert "1 subject(s) of test are in train too: 'P2'" in " ".join(lines)
