"""``docs/correct_a_model.md`` works as it stands."""

import re
import shlex
from pathlib import Path

import pytest
from birds_run import shared_folder, small
from conftest import PROJECT

import cbm
from cbm.editing import load_edits

GUIDE = (PROJECT / "docs" / "correct_a_model.md").read_text()


def test_correct_a_model_in_ten_lines(command, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch):
    train, evaluate = [
        line for block in re.findall(r"```bash\n(.*?)```", GUIDE, re.DOTALL) for line in block.splitlines()
    ]
    (tmp_path / "cache").symlink_to(shared_folder() / "cache")
    (shared_folder() / "cache").mkdir(exist_ok=True)
    quick = ("report=false", "controls=false", "nec=[]", "trainer.progress=false")
    status, errors = command("train", *shlex.split(train)[2:], *small("birds_spurious"), *quick)
    assert status == 0, errors
    capsys.readouterr()
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    assert len(blocks[0].strip().splitlines()) <= 13
    monkeypatch.setattr(
        "cbm.editing.Comparison.accept", lambda self, max_class_loss: True
    )  # so few pictures decide little
    exec(compile("\n".join(blocks), "correct_a_model.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"accuracy 0\.\d{4} -> [01]\.\d{4}: \d+ decisions gained, \d+ lost .*", printed[0])
    removed = [edit.concept for edit in load_edits("edits.yaml").edits]
    assert {"water in background", "wading in shallow water"} <= set(removed)
    assert cbm.load("runs/spurious").split("test", cache=tmp_path / "cache").names
    status, errors = command("eval", *shlex.split(evaluate)[2:])
    assert status == 0, errors
