"""The guides whose code is meant to be typed in work as they stand."""

import re
import shlex
from pathlib import Path

import pytest
from birds_run import shared_folder, small
from conftest import PROJECT

import cbm
from cbm.editing import load_edits
from cbm.methods import METHODS

QUICK = ("report=false", "controls=false", "nec=[]", "trainer.progress=false")


def code(guide: str) -> tuple[list[list[str]], list[str]]:
    """Arguments of the commands, and the blocks of Python."""
    text = (PROJECT / "docs" / guide).read_text()
    lines = [line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines], re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def share_cache(folder: Path) -> None:
    (shared_folder() / "cache").mkdir(exist_ok=True)
    (folder / "cache").symlink_to(shared_folder() / "cache")


def test_correct_a_model_in_ten_lines(command, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch):
    (train, evaluate), blocks = code("correct_a_model.md")
    share_cache(tmp_path)
    status, errors = command("train", *train[1:], *small("birds_spurious"), *QUICK)
    assert status == 0, errors
    capsys.readouterr()
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
    status, errors = command("eval", *evaluate[1:])
    assert status == 0, errors


def test_take_a_model_elsewhere(command, module, tmp_path: Path, capsys: pytest.CaptureFixture):
    pytest.importorskip("onnxruntime")
    (train, *exports), blocks = code("portable.md")
    share_cache(tmp_path)
    status, errors = command("train", *train[1:], *small(), *QUICK)
    assert status == 0, errors
    for arguments in exports:
        status, said, errors = module(*arguments[2:])
        assert status == 0, errors
        assert "20 classes, 2" in said
    assert module(*exports[0][2:])[0] == 2  # nothing is overwritten
    capsys.readouterr()
    exec(compile("\n".join(blocks), "portable.md", "exec"), {})
    concepts, difference, tensors, accuracy, why, title, translated, other, refused = (
        capsys.readouterr().out.splitlines()
    )
    assert concepts.endswith("local-dir:cbm/encoders/tiny_clip")
    assert float(difference) < 1e-3
    assert "'concepts': [2" in tensors
    assert float(accuracy) > 0.3
    assert why.startswith("[[('")
    assert title == "# labo on birds"
    kept = [float(share) for share in re.findall(r"([\d.]+)% of decisions", translated)]
    assert len(kept) == 3  # by the re-fit, by random directions, under the old weights
    assert min(kept[0], kept[2]) > 80
    assert "replaced by 'general'" in other
    assert "less than least=0.9" in refused


def test_kernels():
    _, blocks = code("kernels.md")  # its commands need a GPU
    exec(compile("\n".join(blocks), "kernels.md", "exec"), {})


@pytest.mark.parametrize("page", sorted((PROJECT / "docs" / "methods").glob("*.md")), ids=lambda page: page.stem)
def test_every_method_page_says_the_same_things(page: Path):
    text = page.read_text()
    assert f"`method={page.stem}`" in text
    assert "**Idea.**" in text
    assert re.search(r"\*\*(Formulas?|Steps)\*?\*?\.?", text) or "p(c, y | x)" in text
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    for wanted in ("Configuration", "Fidelity", "Citation"):
        assert wanted in headings
    assert {"Measured", "On photographs"} & set(headings)


def test_every_method_has_a_page():
    assert {page.stem for page in (PROJECT / "docs" / "methods").glob("*.md")} == set(METHODS)
