"""What a run directory that came from elsewhere can ask of whoever reads it or writes to it: nothing."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import one_line
from hand_made_run import write_run
from omegaconf import OmegaConf

import cbm
from cbm.concepts import Concept, ConceptBank
from cbm.config import load_card
from cbm.errors import UserError
from cbm.files.run_directory import choose_run_directory, open_run, read_config, settings_hash
from cbm.layers import load_model, save_model


@pytest.fixture
def received(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CANARY_KEY", "sk-CANARY")
    return write_run(tmp_path / "received")


def set_in(run: Path, key: str, value: object) -> None:
    content = yaml.safe_load((run / "config.yaml").read_text())
    *parents, last = key.split("/")
    place = content
    for name in parents:
        place = place[name]
    place[last] = value
    (run / "config.yaml").write_text(yaml.safe_dump(content))


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("logger/project", "${oc.env:CANARY_KEY}", "logger.project"),
        ("logger/project", "x ${oc.env:CANARY_KEY,none} y", "logger.project"),
        ("logger/project", "${oc.decode:${oc.env:CANARY_KEY}}", "logger.project"),
        ("logger/tags", ["a", "${oc.env:CANARY_KEY}"], r"logger.tags\[1\]"),
        ("dataset/args", {"a": {"b": [{"c": "${now:%Y}"}]}}, r"dataset.args.a.b\[0\].c"),
        ("dataset/root", "${cache}/x", "dataset.root"),
        ("dataset/root", r"\${oc.env:CANARY_KEY}", "dataset.root"),
        ("encoder/model", "hf-hub:${oc.env:CANARY_KEY}/x", "encoder.model"),
        ("method/name", "${oc.env:CANARY_KEY", "method.name"),  # not even closed
        ("dataset/args", {"${oc.env:CANARY_KEY}": 1}, r"dataset.args.\$\{oc.env:CANARY_KEY\}"),
        ("${seed}", 1, r"\$\{seed\}"),
        ("seed", "${cache}", "seed"),
    ],
)
def test_a_received_configuration_reads_nothing(received: Path, key: str, value: object, named: str):
    set_in(received, key, value)
    with pytest.raises(UserError, match=f"config.yaml': '{named}' contains '\\$\\{{'") as refused:
        cbm.load(received)
    assert "sk-CANARY" not in str(refused.value)


def test_every_way_of_writing_a_dollar(received: Path):
    text = (received / "config.yaml").read_text()
    (received / "config.yaml").write_text(text.replace("project: cbm", 'project: "\\x24{oc.env:CANARY_KEY}"'))
    with pytest.raises(UserError, match="'logger.project' contains"):
        read_config(received)


@pytest.mark.parametrize("command", [["report"], ["compare"], ["app"], ["intervene"]])
def test_commands_say_so_in_one_line(received: Path, module, command: list[str]):
    set_in(received, "logger/project", "${oc.env:CANARY_KEY}")
    status, out, errors = module(*command, str(received))
    assert "'logger.project' contains" in one_line((status, errors))
    assert "sk-CANARY" not in out + errors
    assert not (received / "report.html").exists()


def test_dollars_are_text(received: Path):
    for value in ("$9 each", "$HOME/x", "a$", "{x}", "$$ {x}", r"\$x$"):
        set_in(received, "dataset/root", value)
        assert read_config(received).dataset.root == value


def test_what_could_not_be_read_is_not_written():
    cfg = OmegaConf.create({"trainer": {}, "method": {"name": "labo"}, "tags": [r"\${x}"]})
    with pytest.raises(UserError, match=r"'tags\[0\]' contains '\$\{'"):
        settings_hash(cfg)


@pytest.mark.parametrize("name", ["config.yaml", "about.json", "state.json", "bank/bank.json", "model.safetensors"])
def test_what_this_user_may_not_read_is_one_line(received: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    """As the system says it to others than root."""
    (received / "state.json").write_text('{"finished": true, "settings": "x", "checksums": {}}')
    really, denied = os.open, received / name

    def refuse(path: object, *args: object, **settings: object) -> int:
        if isinstance(path, str | Path) and Path(path) == denied:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return really(path, *args, **settings)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match=f"{name}'") as raised:
        cbm.load(received)
    assert "Permission denied" in str(raised.value)


def test_a_directory_that_may_not_be_looked_into_is_one_line(received: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    monkeypatch.setattr(Path, "exists", refuse)
    cfg = OmegaConf.create({"run_dir": str(received), "method": {"name": "labo"}, "trainer": {}})
    for call in (lambda: open_run(received), lambda: choose_run_directory(cfg)):
        with pytest.raises(UserError, match=f"cannot read '{received}': Permission denied"):
            call()


@pytest.mark.parametrize("name", ["config.yaml", "metrics.json", "about.json"])
def test_a_file_that_this_user_may_not_read_is_one_line(
    received: Path, name: str, module, monkeypatch: pytest.MonkeyPatch
):
    """Tests run as root too, who may read everything."""
    from cbm.files import opening

    real = opening.os.open

    def refuse(path, *args):
        if Path(path).name == name:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, *args)

    (received / "state.json").write_text(json.dumps({"settings": "x", "finished": True, "checksums": {name: ""}}))
    monkeypatch.setattr(opening.os, "open", refuse)
    status, _, errors = module("export", str(received), "--out", "m.onnx")
    assert f"{name}': Permission denied" in one_line((status, errors))


def test_a_folder_that_this_user_may_not_enter_is_one_line(received: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(UserError, match="cannot read '.*received': Permission denied"):
        cbm.load(received)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": []}, "expected the classes and the encoder"),
        ({"classes": ["ant", 1]}, "expected the classes and the encoder"),
        ({"encoder": None}, "expected the classes and the encoder"),  # and nothing says how wide the features are
        ({"encoder": {"fingerprint": "f"}}, "expected the classes and the encoder"),
        ({"dim": True}, "expected the classes and the encoder"),
        ({"encoder": None, "dim": 12, "verdict": True}, "'verdict' is no str"),
        ({"changes": 3}, "'changes' is no list"),
        ({"encoder": None, "dim": 13}, "reads 12 features, but 'about.json' beside it says 13"),
        ({"classes": ["ant", "bee"]}, "tells 4 classes apart, but 'about.json' beside it names 2"),
    ],
)
def test_damaged_facts(tmp_path: Path, change: dict, message: str):
    run = write_run(tmp_path / "run")
    (run / "about.json").write_text(json.dumps(json.loads((run / "about.json").read_text()) | change))
    with pytest.raises(UserError, match=message):
        cbm.load(run)


def test_facts_of_features_that_were_given(tmp_path: Path):
    run = write_run(tmp_path / "run")
    about = json.loads((run / "about.json").read_text()) | {"encoder": None, "dim": 12, "changes": None}
    (run / "about.json").write_text(json.dumps(about))
    assert cbm.load(run).dim == 12
    assert cbm.load(run).changes == ()


@pytest.mark.parametrize("section", ["dataset", "method", "trainer", "logger", "encoder"])
@pytest.mark.parametrize("value", [None, "x", [1], 3])
def test_sections_that_hold_no_settings(received: Path, section: str, value: object):
    set_in(received, section, value)
    with pytest.raises(UserError, match="not the configuration of a run"):
        cbm.load(received, device="cpu")


@pytest.mark.parametrize("section", ["dataset", "method", "trainer", "seed", "encoder"])
def test_sections_that_are_not_there(received: Path, section: str):
    content = yaml.safe_load((received / "config.yaml").read_text())
    del content[section]
    (received / "config.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=f"it has no '{section}"):
        cbm.load(received, device="cpu")


def test_settings_of_the_encoder_that_are_not_there(received: Path):
    set_in(received, "trainer", {"x": 1})
    model = cbm.load(received)
    with pytest.raises(UserError, match="not the configuration of a run"):
        model.encoding(load_card("birds"))
    set_in(received, "encoder", {"precision": "fp32"})
    with pytest.raises(UserError, match="not the configuration of a run: Missing key model"):
        _ = cbm.load(received).encoder


def test_a_bank_of_another_model(tmp_path: Path):
    run = write_run(tmp_path / "run")
    ConceptBank("b", "s", (Concept("red"),)).save(tmp_path / "bank")
    shutil.rmtree(run / "bank")
    (tmp_path / "bank").rename(run / "bank")
    with pytest.raises(UserError, match="has 9 concepts, the bank beside it 1"):
        cbm.load(run)


def test_weights_that_are_no_numbers(tmp_path: Path):
    run = write_run(tmp_path / "run")
    model = load_model(run / "model.safetensors")
    model.head.bias[0] = float("nan")
    save_model(model, run / "model.safetensors")
    with pytest.raises(UserError, match="NaN"):
        cbm.load(run)
