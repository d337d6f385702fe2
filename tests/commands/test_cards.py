"""Every shipped card: known reader, known settings, what it says about its set, and where the docs list it."""

import inspect
import re
import shutil
from dataclasses import fields

import pytest
from conftest import PROJECT, one_line

from cbm import config
from cbm.data import READERS

YOURS = {"folder", "csv", "webdataset", "features"}
DOCS = (PROJECT / "docs/datasets.md").read_text()
TABLE = dict(re.findall(r"^\| `(\w+)` \|(.*)$", DOCS, re.MULTILINE))


@pytest.mark.parametrize("name", config.card_names())
def test_card(name: str):
    card, about = config.load_card(name), config.about_card(name)
    assert card.name == name
    assert card.reader in READERS
    known = set(inspect.signature(READERS[card.reader]).parameters) - {"name", "root", "cache"}
    assert set(card.args) <= known
    if card.root is None:
        assert not card.args.get("download")
    assert card.template.count("{}") == 1
    assert about.title
    if name not in YOURS:
        for entry in fields(about):
            if entry.name != "md5":
                assert getattr(about, entry.name), f"{name} says nothing about {entry.name}"
        assert {"classes", "train", "val", "test", "concepts"} >= set(about.counts)
    assert name in TABLE, f"docs/datasets.md does not list {name}"


@pytest.mark.parametrize("name", [name for name in config.card_names() if name not in YOURS])
def test_docs_say_the_numbers_of_the_card(name: str):
    row = TABLE[name].replace(",", "")
    for what, count in config.about_card(name).counts.items():
        assert re.search(rf"\b{count}\b", row), f"docs/datasets.md does not say that {name} has {count} {what}"


def test_checksums_are_those_of_torchvision():
    from torchvision import datasets

    said = {name: config.about_card(name).md5 for name in config.card_names()}
    of_flowers = {f"flowers-102/{file}": md5 for file, md5 in datasets.Flowers102._file_dict.values()}
    of_faces = {file: md5 for _, md5, file in datasets.CelebA.file_list}
    places = datasets.Places365
    assert said["dtd"] == {"dtd/dtd-r1.0.1.tar.gz": datasets.DTD._MD5}
    assert said["food101"] == {"food-101.tar.gz": datasets.Food101._MD5}
    assert said["flowers102"] == of_flowers
    assert said["celeba"].items() <= of_faces.items()
    assert said["cifar10"] == {datasets.CIFAR10.filename: datasets.CIFAR10.tgz_md5}
    assert said["cifar100"] == {datasets.CIFAR100.filename: datasets.CIFAR100.tgz_md5}
    assert said["places365"] == dict(
        [
            places._CATEGORIES_META, places._FILE_LIST_META["train-standard"], places._FILE_LIST_META["val"],
            places._IMAGES_META["train-standard", True], places._IMAGES_META["val", True],
        ]
    )  # fmt: skip


@pytest.fixture
def own_card(tmp_path, monkeypatch):
    def write(text: str) -> None:
        (tmp_path / "cards").mkdir(exist_ok=True)
        (tmp_path / "cards/mine.yaml").write_text(text)
        shutil.copy(PROJECT / "datasets/birds.yaml", tmp_path / "cards")
        monkeypatch.setattr(config, "CARDS", tmp_path / "cards")

    return write


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: mine\nreader: folder\ntempalte: x\n", "unknown key 'tempalte', did you mean 'template'"),
        ("name: mine\nreader: folder\nval_fraction: half\n", "val_fraction|half"),
        (
            "name: mine\nreader: folder\nabout: {licens: x}\n",
            "unknown setting 'about.licens' of 'mine': did you mean 'licence'",
        ),
        ("name: mine\nreader: folder\nabout: {counts: {train: many}}\n", "about.counts"),
        ("name: [\n", "is not YAML"),
        ("- name\n", "expected KEY: VALUE lines"),
    ],
)
def test_a_card_with_a_mistake(text: str, message: str, own_card, module):
    own_card(text)
    status, _, errors = module("datasets", "check", "mine", "root=/")
    assert re.search(message, one_line((status, errors)))


def test_a_card_with_a_mistake_does_not_train(own_card, command):
    own_card("name: mine\nreader: folder\nroot: x\ntempalte: x\n")
    message = one_line(command("train", "dataset=mine"))
    assert "unknown setting 'dataset.tempalte': did you mean 'dataset.template'" in message
    own_card("name: [\n")
    assert "card datasets/mine.yaml is not YAML" in one_line(command("train", "dataset=birds"))


def test_what_a_card_says_about_its_set_is_no_setting(own_card, command, colour_folder):
    own_card(f"name: mine\nreader: folder\nroot: {colour_folder}\nabout: {{licence: ours}}\n")
    status, errors = command(
        "train", "dataset=mine", "method=linear_probe", "trainer.progress=false", "encoder.num_workers=0",
        "run_dir=run", "cache=cache", "report=false",
    )  # fmt: skip
    assert status == 0, errors


def test_a_language_model_is_asked_about_what_the_card_says_the_classes_are(own_card, module, colour_folder):
    own_card(f"name: mine\nreader: folder\nroot: {colour_folder}\nsuperclass: gemstone\n")
    ask = ["concepts", "llm", "--out", "bank", "--dataset", "mine", "--model", "m", "--dry-run"]
    status, shown, errors = module(*ask)
    assert status == 0, errors
    assert "gemstone" in shown
    assert "gemstone" not in module(*ask, "--superclass", "crystal")[1]
