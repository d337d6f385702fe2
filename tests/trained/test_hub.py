"""The hub is played by a folder: what would be uploaded is copied there, and downloaded from there."""

import errno
import json
import os
import re
import shutil
from pathlib import Path, PureWindowsPath

import pytest
import torch
import yaml
from hand_made_run import write_run
from huggingface_hub import errors
from safetensors import safe_open
from small_bottleneck import CLASSES, D

import cbm
from cbm.editing import Edit
from cbm.files.without_paths import without_paths
from cbm.trained.hub import FILES

X = torch.nn.functional.normalize(torch.randn(5, D, generator=torch.Generator().manual_seed(0)), dim=1)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "hub"

    class Api:
        def create_repo(self, repo_id, *, private, exist_ok):
            (place / repo_id).mkdir(parents=True, exist_ok=exist_ok)
            return f"hub/{repo_id}{' (private)' if private else ''}"

        def upload_folder(self, *, repo_id, folder_path, commit_message, allow_patterns):
            for name in allow_patterns:
                if (Path(folder_path) / name).is_file():
                    (place / repo_id / name).parent.mkdir(exist_ok=True)
                    shutil.copy(Path(folder_path) / name, place / repo_id / name)

    def snapshot_download(repo_id, *, revision, allow_patterns):
        assert set(allow_patterns) == set(FILES)
        return str(place / repo_id)

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return place


def test_there_and_back(hub: Path, tmp_path: Path):
    model = cbm.load(write_run(tmp_path / "run"))
    assert model.push_to_hub("org/name") == "hub/org/name (private)"
    back = cbm.load("hf-hub:org/name")
    assert torch.equal(back.predict_features(X).logits, model.predict_features(X).logits)
    assert back.bank is not None
    assert back.bank.texts == model.bank.texts
    assert back.classes == CLASSES
    assert back.changes == ()


def test_what_is_given_away(hub: Path, tmp_path: Path):
    cbm.load(write_run(tmp_path / "run")).push_to_hub("org/name")
    files = sorted(str(file.relative_to(hub / "org/name")) for file in (hub / "org/name").rglob("*") if file.is_file())
    assert files == sorted(FILES)  # no source card: that holds features of pictures; nothing pickled
    for name in files:
        content = (hub / "org/name" / name).read_bytes()
        assert b"/home/me" not in content, name
        assert str(tmp_path).encode() not in content, name
        assert str(cbm.__path__[0].rsplit("/", 1)[0]).encode() not in content, name
    with safe_open(hub / "org/name" / "model.safetensors", "pt") as file:
        assert "concepts" in list(file.keys())


def test_the_card_says_what_was_measured(hub: Path, tmp_path: Path):
    cbm.load(write_run(tmp_path / "run")).push_to_hub("org/name")
    card = (hub / "org/name" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: cbm\n")
    for line in (
        'model = cbm.load("hf-hub:org/name")',
        "| accuracy | 87.5% |",
        "| training pictures | 1,234 |",
        "The concepts carry the decision.",
        "| its licence | Apache-2.0 |",
        "its classes and no others",
    ):
        assert line in card
    assert "| ant | concept" in card
    assert "Changed after training" not in card
    assert "\n\n\n" not in card


def test_numbers_of_the_trained_model_do_not_go_with_a_changed_one(hub: Path, tmp_path: Path):
    model = cbm.load(write_run(tmp_path / "run")).with_edits([Edit("remove", "concept 3", why="spurious")])
    model.push_to_hub("org/edited")
    card = (hub / "org/edited" / "README.md").read_text()
    assert "87.5%" not in card
    assert "the concepts carry" not in card.lower().replace("do the concepts carry", "")
    assert "- remove 'concept 3'" in card
    assert json.loads((hub / "org/edited" / "metrics.json").read_text()) == {}
    back = cbm.load("hf-hub:org/edited")
    assert back.changes == ("remove 'concept 3'",)
    assert torch.equal(back.predict_features(X).logits, model.predict_features(X).logits)


def test_a_folder_here_keeps_its_source_card(tmp_path: Path):
    model = cbm.load(write_run(tmp_path / "run"))
    assert cbm.load(model.save(tmp_path / "given")).with_bank(model.bank).changes[0].kept.agreement == 1
    with pytest.raises(cbm.UserError, match="is there already"):
        model.save(tmp_path / "given")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.OfflineModeIsEnabled("offline"), "the hub cannot be reached from here"),
        (errors.LocalTokenNotFoundError("token"), "log in with `hf auth login`"),
        (errors.HFValidationError("Repo id must be ORG/NAME"), "Repo id must be"),
    ],
)
def test_one_line_for_what_the_client_raises(error, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*args, **settings):
        raise error

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", fail)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(cbm.UserError, match=f"cannot upload to 'org/name': .*{said}"):
        cbm.load(write_run(tmp_path / "run")).push_to_hub("org/name")
    with pytest.raises(cbm.UserError, match=f"cannot download 'hf-hub:org/name': .*{said}"):
        cbm.load("hf-hub:org/name")


def test_a_repository_of_something_else(hub: Path):
    (hub / "org/other").mkdir(parents=True)
    with pytest.raises(cbm.UserError, match="is no model of cbm"):
        cbm.load("hf-hub:org/other")


def test_paths_are_cut():
    assert without_paths({"a": ["/home/me/x.json", "~/x.json", "x/y.json", "http://a/b", 3]}) == {
        "a": ["x.json", "x.json", "x/y.json", "http://a/b", 3]
    }
    assert without_paths("local-dir:/home/me/clip") == "local-dir:clip"


def test_paths_of_windows_say_no_more(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cbm.files.without_paths.Path", PureWindowsPath)
    said = ["C:\\Users\\me\\x.json", "D:/x.json", "local-dir:C:\\Users\\me\\clip", "local-dir:C:/Users/me/clip", "a: b"]
    assert without_paths(said) == ["x.json", "x.json", "local-dir:clip", "local-dir:clip", "a: b"]


def test_a_folder_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A full disk at any of its files, or a damaged run, leaves no folder, and the same call works then."""
    model = cbm.load(write_run(tmp_path / "run"))
    real, left = os.fsync, []

    def full(descriptor: int) -> None:
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left.pop()
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    for stop_at in range(7):
        left[:] = range(stop_at)
        with pytest.raises(cbm.UserError, match=f"no space left for '{tmp_path}/saved/"):
            model.save(tmp_path / "saved")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    monkeypatch.setattr(os, "fsync", real)
    monkeypatch.setattr(shutil, "copyfile", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(cbm.UserError, match=f"no space left for '{tmp_path}/saved'"):
        model.save(tmp_path / "saved")
    monkeypatch.undo()
    (tmp_path / "run" / "metrics.json").write_text("{")
    with pytest.raises(cbm.UserError, match="metrics.json' is not JSON"):
        model.save(tmp_path / "saved")
    (tmp_path / "run" / "metrics.json").write_text("{}")
    assert cbm.load(model.save(tmp_path / "saved")).classes == model.classes


def test_no_name_in_the_card_is_markup(tmp_path: Path):
    """Class, concept, data set and bank names, and whatever a received configuration says, are text."""
    run = write_run(tmp_path / "run")
    name = "a|b <img src=x> [c](http://d.e) `f` @g \x1b[31m *h*"
    for file in (run / "about.json", run / "bank" / "bank.json"):
        content = json.loads(file.read_text())
        if "classes" in content:
            content["classes"][0] = name
        else:
            content["name"] = name
            content["concepts"][0]["text"] = name
        file.write_text(json.dumps(content))
    (run / "bank" / "embeddings.safetensors").unlink()
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["method"]["name"] = config["method"]["fidelity"] = config["dataset"]["name"] = name
    config["encoder"]["model"] = name
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    card = (cbm.load(run).save(tmp_path / "saved") / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["tags"][-1].startswith("a|b <img")
    body = card.split("---\n", 2)[2]
    text = re.sub(r"`[^`\n]*`", "", body)  # what stands between backticks is as it is
    assert "<img" not in text
    assert not re.search(r"(?<!\\)\]\(", text)
    assert "\x1b" not in card
    assert not re.search(r"(?<!\\)\*h", text)
