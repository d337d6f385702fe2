"""Small trees in the formats in which the benchmarks are published, and the mistakes people make with them."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from conftest import COLOURS, paint

from cbm.data import complete_splits, lists, read_dataset
from cbm.data.lists import integers, read_matlab
from cbm.data.recognition import place_name
from cbm.errors import UserError


def paint_all(root: Path, files: list[str]) -> None:
    for number, file in enumerate(files):
        paint(root / file, list(COLOURS.values())[number % 3], number, size=8)


def write(file: Path, *lines: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")


def coop(file: Path, **parts: list[tuple[str, int, str]]) -> None:
    file.write_text(json.dumps(parts))


def dtd(root: Path) -> Path:
    files = {name: [f"{name}/{name}_{i:04d}.jpg" for i in range(6)] for name in ("banded", "polka-dotted")}
    for p, part in enumerate(("train", "val", "test")):
        for number in (1, 2):
            listed = [file for of_class in files.values() for file in of_class[2 * p : 2 * p + 2][:: 3 - 2 * number]]
            write(root / "labels" / f"{part}{number}.txt", *listed)
    paint_all(root / "images", [file for of_class in files.values() for file in of_class])
    return root


def flowers(root: Path) -> Path:
    paint_all(root, [f"jpg/image_{i:05d}.jpg" for i in range(1, 1 + 3 * 102)])
    labels = np.tile(np.arange(1, 103, dtype=np.uint8), 3)
    scipy.io.savemat(root / "imagelabels.mat", {"labels": labels[None]})
    ids = {"trnid": range(1, 103), "valid": range(103, 205), "tstid": range(306, 204, -1)}
    scipy.io.savemat(root / "setid.mat", {key: np.array([value], np.uint16) for key, value in ids.items()})
    return root


def food(root: Path) -> Path:
    write(root / "meta/classes.txt", "apple_pie", "sushi")
    write(root / "meta/labels.txt", "Apple pie", "Sushi")
    write(root / "meta/train.txt", "apple_pie/1005649", "sushi/1", "sushi/2")
    write(root / "meta/test.txt", "apple_pie/1011328", "sushi/3")
    for part in ("train", "test"):  # the same lists again
        files = (root / f"meta/{part}.txt").read_text().split()
        by_class = {c: [file for file in files if file.startswith(c)] for c in ("apple_pie", "sushi")}
        (root / f"meta/{part}.json").write_text(json.dumps(by_class))
    paint_all(
        root / "images", ["apple_pie/1005649.jpg", "apple_pie/1011328.jpg", *(f"sushi/{i}.jpg" for i in (1, 2, 3))]
    )
    return root


def aircraft(root: Path) -> Path:
    data = root / "data"
    write(data / "variants.txt", "707-320", "727-200", "F-16A/B", "Challenger 600")
    write(data / "families.txt", "Boeing 707", "Boeing 727", "F-16", "Challenger 600")
    variants = ["707-320", "727-200", "F-16A/B", "Challenger 600"]
    families = ["Boeing 707", "Boeing 727", "F-16", "Challenger 600"]
    for p, part in enumerate(("train", "val", "test")):
        numbers = [f"{1025794 + 4 * p + i}" for i in range(4)]
        write(data / f"images_variant_{part}.txt", *(f"{n} {v}" for n, v in zip(numbers, variants)))
        write(data / f"images_family_{part}.txt", *(f"{n} {v}" for n, v in zip(numbers, families)))
        paint_all(data / "images", [f"{n}.jpg" for n in numbers])
    return root


def ucf101(root: Path) -> Path:
    lists = root / "ucfTrainTestlist"
    write(lists / "classInd.txt", "1 ApplyEyeMakeup", "2 HandstandPushups", "3 YoYo")
    films = {"ApplyEyeMakeup": "ApplyEyeMakeup", "HandstandPushups": "HandStandPushups", "YoYo": "YoYo"}  # sic
    train, test = [], []
    for c, (action, film) in enumerate(films.items()):
        for g in range(1, 8):
            for clip in (1, 2, 3):
                name = f"{action}/v_{film}_g{g:02d}_c{clip:02d}.avi"
                train.append(f"{name} {c + 1}") if g > 2 else test.append(name)
                folder = {"ApplyEyeMakeup": "Apply_Eye_Makeup", "HandstandPushups": "Handstand_Pushups"}.get(
                    action, "Yo_Yo"
                )
                paint(root / "UCF-101-midframes" / folder / f"v_{film}_g{g:02d}_c{clip:02d}.jpg", (9, 9, 9), g, size=8)
    write(lists / "trainlist01.txt", *train)
    write(lists / "testlist01.txt", *test)
    return root


def places(root: Path) -> Path:
    write(root / "categories_places365.txt", "/a/airfield 0", "/b/bakery/shop 1", "/c/church/indoor 2")
    train = [
        f"/{f}/{i:08d}.jpg {c}"
        for c, f in enumerate(("a/airfield", "b/bakery/shop", "c/church/indoor"))
        for i in (1, 2)
    ]
    val = [f"Places365_val_{i:08d}.jpg {i % 3}" for i in range(1, 4)]
    write(root / "places365_train_standard.txt", *train)
    write(root / "places365_val.txt", *val)
    paint_all(root / "data_256_standard", [line.split()[0][1:] for line in train])
    paint_all(root / "val_256", [line.split()[0] for line in val])
    return root


def resisc45(root: Path) -> Path:
    for name in ("airplane", "baseball_diamond"):
        paint_all(root / name, [f"{name}_{i:03d}.jpg" for i in range(1, 11)])
    return root


WRITE = {
    "dtd": dtd, "flowers102": flowers, "food101": food, "aircraft": aircraft, "ucf101": ucf101, "places365": places,
    "resisc45": resisc45,
}  # fmt: skip


def sizes(data) -> dict[str, int]:
    return {split: len(part) for split, part in data.splits.items()}


def by_name(data, split: str) -> dict[str, str]:
    part = data.splits[split]
    return {name: data.classes[label] for name, label in zip(part.images.names, part.labels)}


@pytest.mark.parametrize("kind", WRITE)
def test_pictures_open_and_labels_are_classes(kind: str, tmp_path: Path):
    data = read_dataset(kind, kind, WRITE[kind](tmp_path), {})
    for split in data.splits.values():
        assert split.labels.dtype == np.int64
        assert split.images.open(len(split) - 1).size == (8, 8)
    assert len(set(data.classes)) == len(data.classes)


@pytest.mark.parametrize("kind", WRITE)
def test_an_empty_folder_is_said_to_be_something_else(kind: str, tmp_path: Path):
    with pytest.raises(UserError, match="is dataset.root the unpacked archive"):
        read_dataset(kind, kind, tmp_path, {})
    with pytest.raises(UserError, match=f"no folder '{tmp_path}/nowhere'"):
        read_dataset(kind, kind, tmp_path / "nowhere", {})


@pytest.mark.parametrize(
    "kind", [kind for kind in WRITE if kind != "resisc45"]
)  # class folders: nobody lists its files
def test_a_missing_picture_is_named(kind: str, tmp_path: Path):
    data = read_dataset(kind, kind, WRITE[kind](tmp_path), {})
    images = data.splits["test"].images
    (images.root / images.names[-1]).unlink()
    with pytest.raises(
        UserError, match=f"1 of {len(images)} picture.*first: '{images.names[-1]}'.*unpacked to the end"
    ):
        read_dataset(kind, kind, tmp_path, {})


def test_dtd(tmp_path: Path):
    data = read_dataset("dtd", "dtd", dtd(tmp_path / "dtd/dtd"), {})
    data = read_dataset("dtd", "dtd", tmp_path, {})  # as torchvision unpacks it
    assert data.classes == ["banded", "polka-dotted"]
    assert sizes(data) == {"train": 4, "val": 4, "test": 4}
    assert by_name(data, "test")["images/polka-dotted/polka-dotted_0005.jpg"] == "polka-dotted"
    with pytest.raises(UserError, match="dataset.args.partition=11: expected 1 to 10"):
        read_dataset("dtd", "dtd", tmp_path, {"partition": 11})


def test_flowers(tmp_path: Path):
    data = read_dataset("flowers102", "f", flowers(tmp_path), {})
    assert len(data.classes) == 102
    assert by_name(data, "test")["jpg/image_00205.jpg"] == "pink primrose"
    (tmp_path / "setid.mat").write_text("not Matlab")
    with pytest.raises(UserError, match="setid.mat' cannot be read"):
        read_dataset("flowers102", "f", tmp_path, {})


def test_food(tmp_path: Path):
    data = read_dataset("food101", "f", food(tmp_path), {})
    assert data.classes == ["apple pie", "sushi"]
    assert sizes(data) == {"train": 3, "test": 2}
    write(tmp_path / "meta/test.txt", "aple_pie/1011328")
    with pytest.raises(UserError, match="class 'aple_pie' is in test but not in train, did you mean 'apple_pie'"):
        read_dataset("food101", "f", tmp_path, {})


def test_aircraft_has_the_variants_of_its_list(tmp_path: Path):
    data = read_dataset("aircraft", "a", aircraft(tmp_path), {})
    assert data.classes == ["707-320", "727-200", "F-16A/B", "Challenger 600"]
    assert sizes(data) == {"train": 4, "val": 4, "test": 4}
    assert "Boeing 727" in read_dataset("aircraft", "a", tmp_path, {"level": "family"}).classes
    with pytest.raises(UserError, match="dataset.args.level=famly: did you mean 'family'"):
        read_dataset("aircraft", "a", tmp_path, {"level": "famly"})


def test_films_cut_from_one_stay_in_one_split(tmp_path: Path):
    data = read_dataset("ucf101", "ucf101", ucf101(tmp_path), {})
    assert data.classes == ["Apply Eye Makeup", "Handstand Pushups", "Yo Yo"]
    assert sizes(data) == {"train": 45, "test": 18}
    parts = complete_splits(data, tmp_path / "cache", val_fraction=0.2, test_fraction=0.5, seed=0).splits
    assert len(parts["val"]) == 9
    groups = {split: {name.rpartition("_")[0] for name in part.images.names} for split, part in parts.items()}
    assert not groups["train"] & groups["val"]


def test_places(tmp_path: Path):
    data = read_dataset("places365", "p", places(tmp_path), {})
    assert data.classes == ["airfield", "bakery shop", "indoor church"]
    assert by_name(data, "test")["val_256/Places365_val_00000002.jpg"] == "indoor church"
    assert place_name("/a/apartment_building/outdoor") == "outdoor apartment building"
    write(tmp_path / "places365_val.txt", "Places365_val_00000001.jpg 3")
    with pytest.raises(UserError, match="places365_val.txt' line 1: expected a picture and a label, 0 to 2"):
        read_dataset("places365", "p", tmp_path, {})
    shutil.rmtree(tmp_path / "val_256")
    with pytest.raises(UserError, match="none of the folders val_256, val_large"):
        read_dataset("places365", "p", tmp_path, {})


def test_resisc45_is_divided_as_its_card_says(tmp_path: Path):
    from cbm.config import load_card

    card = load_card("resisc45")
    data = read_dataset("resisc45", "resisc45", resisc45(tmp_path / "set"), {})
    assert data.classes == ["airplane", "baseball diamond"]
    fractions = {"val_fraction": card.val_fraction, "test_fraction": card.test_fraction}
    assert sizes(complete_splits(data, tmp_path, **fractions, seed=0)) == {"train": 2, "test": 16, "val": 2}


TORCHVISION = {
    "dtd": (dtd, "DTD", "dtd/dtd", {"train": "train", "val": "val", "test": "test"}),
    "flowers102": (flowers, "Flowers102", "flowers-102", {"train": "train", "val": "val", "test": "test"}),
    "food101": (food, "Food101", "food-101", {"train": "train", "test": "test"}),
    "aircraft": (aircraft, "FGVCAircraft", "fgvc-aircraft-2013b", {"train": "train", "val": "val", "test": "test"}),
    "places365": (places, "Places365", ".", {"train": "train-standard", "test": "val"}),
}


@pytest.mark.parametrize("kind", TORCHVISION)
def test_the_same_as_torchvision_reads(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import torchvision.datasets

    build, of, folder, splits = TORCHVISION[kind]
    build(tmp_path / folder)
    for module in ("flowers102", "places365"):  # the checksums are those of the real files
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda *a, **k: True)
    data = read_dataset(kind, kind, tmp_path, {})
    for split, called in splits.items():
        theirs = getattr(torchvision.datasets, of)(
            str(tmp_path), split=called, **({"small": True} if kind == "places365" else {})
        )
        part = data.splits[split]
        ours = {np.asarray(part.images.open(row)).tobytes(): part.labels[row] for row in range(len(part))}
        assert len(theirs) == len(part)
        for picture, label in theirs:
            assert ours[np.asarray(picture).tobytes()] == label


COOP = {
    "dtd": (dtd, "split_zhou_DescribableTextures.json", "banded/banded_{:04d}.jpg"),
    "flowers102": (flowers, "split_zhou_OxfordFlowers.json", "image_{:05d}.jpg"),
    "ucf101": (ucf101, "split_zhou_UCF101.json", "Yo_Yo/v_YoYo_g0{}_c01.jpg"),
}


@pytest.mark.parametrize("kind", COOP)
def test_the_split_of_coop(kind: str, tmp_path: Path):
    build, file, name = COOP[kind]
    build(tmp_path)
    with pytest.raises(UserError, match=f"no file '.*{file}'.*protocol=official does not"):
        read_dataset(kind, kind, tmp_path, {"protocol": "coop"})
    files = [name.format(number) for number in range(1, 6)]
    parts = {
        "train": [(files[0], 1, "b_b"), (files[1], 0, "a")],
        "val": [(files[2], 0, "a")],
        "test": [(files[3], 1, "b_b")],
    }
    coop(tmp_path / file, **parts)
    data = read_dataset(kind, kind, tmp_path, {"protocol": "coop"})
    assert data.classes == ["a", "b b"]
    assert {split: part.labels.tolist() for split, part in data.splits.items()} == {
        "train": [1, 0],
        "val": [0],
        "test": [1],
    }
    assert data.splits["val"].images.names[0].endswith(files[2])
    coop(tmp_path / file, **{**parts, "train": [(files[0], 2, "b_b"), (files[1], 0, "a")]})
    with pytest.raises(UserError, match="labels of 'train' are not 0 to 1"):
        read_dataset(kind, kind, tmp_path, {"protocol": "coop"})
    (tmp_path / file).write_text("[]")
    with pytest.raises(UserError, match="is not a split of CoOp's"):
        read_dataset(kind, kind, tmp_path, {"protocol": "coop"})
    with pytest.raises(UserError, match="dataset.args.protocol=zhou: choose one of coop, official"):
        read_dataset(kind, kind, tmp_path, {"protocol": "zhou"})


@pytest.mark.parametrize(("kind", "of"), [("dtd", "DTD"), ("flowers102", "Flowers102"), ("food101", "Food101"),
                                          ("aircraft", "FGVCAircraft"), ("places365", "Places365")])  # fmt: skip
def test_without_a_network_a_download_is_one_line(kind: str, of: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import urllib.request

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("[Errno -2] Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(UserError, match="could not be downloaded.*Name or service not known"):
        read_dataset(kind, kind, tmp_path, {"download": True})


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say how much memory a process has")
def test_a_matlab_file_that_unpacks_to_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lists, "MATLAB", 1 << 26)
    scipy.io.savemat(tmp_path / "small.mat", {"labels": np.arange(1000)}, do_compression=True)
    assert read_matlab(tmp_path / "small.mat", "labels", integers).tolist() == list(range(1000))
    scipy.io.savemat(tmp_path / "large.mat", {"labels": np.zeros(1 << 24)}, do_compression=True)
    assert (tmp_path / "large.mat").stat().st_size < 1 << 18
    with pytest.raises(UserError, match="large.mat' cannot be read"):
        read_matlab(tmp_path / "large.mat", "labels", integers)
