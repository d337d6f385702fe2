"""What is composed for ``train.py`` and ``eval.py`` chooses among parts of cbm; nothing that it names is called."""

from pathlib import Path

import pytest
from conftest import one_line

MKDIR = "{_target_: os.mkdir, path: CODE_WAS_RUN}"
MEMBERS = {
    "an experiment": ("experiment", f"# @package _global_\nhydra: {{callbacks: {{x: {MKDIR}}}}}\n"),
    "an encoder": ("encoder", f"# @package hydra.callbacks\nx: {MKDIR}\n"),
    "a method": ("method", f"# @package _global_\nhydra: {{callbacks: {{x: {{y: [{MKDIR}]}}}}}}\n"),
    "a data set": ("dataset", f"# @package hydra.callbacks\nreader: folder\nx: {MKDIR}\n"),
    "a formatter": (
        "experiment",
        "# @package _global_\nhydra: {job_logging: {formatters: {f: {'()': os.mkdir, path: CODE_WAS_RUN}}}}\n",
    ),
    "the first log": (
        "experiment",
        "# @package _global_\nhydra: {hydra_logging: {filters: {f: {'()': os.mkdir, path: CODE_WAS_RUN}}}}\n",
    ),
}


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("member", MEMBERS)
def test_choices_of_the_working_folder_call_nothing(command, tmp_path: Path, member: str, several: bool):
    group, content = MEMBERS[member]
    (tmp_path / "configs" / group).mkdir(parents=True)
    (tmp_path / "configs" / group / "odd.yaml").write_text(content)
    errors = one_line(command("train", f"{group}=odd", *(["-m", "seed=0,1"] if several else [])))
    assert "names something to call, which no setting may" in errors
    assert not (tmp_path / "CODE_WAS_RUN").exists()


def test_nor_does_the_command_line(command, tmp_path: Path):
    errors = one_line(command("train", f"+hydra.callbacks.x={MKDIR.replace(': ', ':')}"))
    assert "'hydra.callbacks.x._target_'" in errors
    assert not (tmp_path / "CODE_WAS_RUN").exists()
