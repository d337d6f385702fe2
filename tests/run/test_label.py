"""``python -m cbm label``: by keys from a pipe, by a model behind a server, and what is refused."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from birds_run import shared_folder
from explored_run import trained
from llm_server import completion, send, server  # noqa: F401

from cbm.data.concept_answers import read_concept_answers

CACHE = str(shared_folder() / "cache")


@pytest.fixture
def label(module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run the command on a copy of a small run, with these keys; returns (exit status, stdout, stderr)."""
    shutil.copytree(trained("posthoc"), tmp_path / "one")

    def run(keys: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(keys))
        return module("label", "one", "--cache", CACHE, *arguments)

    return run


def said(file: str = "one/labels.csv") -> list[bool | None]:
    return [answer.shown for answer in read_concept_answers(Path(file))]


def test_keys_from_a_pipe(label, module):
    status, out, errors = label("y\nn\ns\nYES\n\nu\nno\nq\ny\n", "--who", "ana")
    assert status == 0, errors
    assert said() == [True, False, None, False]
    assert "people: true for 33.3%" in out
    assert "3 answers about 3 classes, 1 skipped" in out
    assert "taken back: " in errors
    images = [line.split("] ", 1)[1] for line in errors.splitlines() if line.startswith("[")]
    assert images[5] == images[3] != images[4]  # asked again after undo
    assert all(Path(image).is_file() and "/val/" in image for image in images)
    kept = json.loads(Path("one/labels.json").read_text())
    assert kept["by"] == "people"
    assert kept["precision"]["val"]["count"] == 3
    assert {each["who"] for each in kept["answers"]} == {"ana"}
    status, out, errors = label("y\n" * 9, "--pairs", "5", "--json")  # goes on, and ends at five
    assert status == 0, errors
    assert said() == [True, False, None, False, True, True]
    assert len({answer.path for answer in read_concept_answers(Path("one/labels.csv"))}) == 6
    assert json.loads(out)["count"] == 5
    status, _, errors = module("report", "one", "--cache", CACHE)
    assert status == 0, errors
    page = Path("one/report.html").read_text()
    assert "Do people see what it used?" in page
    assert "5 answers about 5 classes<br>" in page
    status, _, errors = module("eval", "run=one", "dataset=csv", "dataset.root=one/labels.csv", "split=val")
    assert status == 0, errors


def test_what_is_no_key_loses_nothing(label):
    status, _, errors = label("y\nyep\nn\n")
    assert status == 2
    assert errors.splitlines()[-1].startswith("error: 'yep' is no answer: y (yes), n (no)")
    assert said() == [True]


def test_classes_and_another_table(label):
    status, _, errors = label("y\n" * 20, "--classes", "Elsdon,Gellinor", "--out", "mine/table.csv", "--pairs", "6")
    assert status == 0, errors
    assert {answer.label for answer in read_concept_answers(Path("mine/table.csv"))} == {"Elsdon", "Gellinor"}
    assert not Path("one/labels.csv").exists()
    status, _, errors = label("y\n" * 20, "--classes", "Elsdon", "--out", "mine/table.csv", "--pairs", "90")
    assert status == 0, errors
    assert "no image is left to ask about: 5 answers" in errors


def test_test_images_come_with_a_note(label):
    status, _, errors = label("y\n", "--split", "test")
    assert status == 0, errors
    assert "must not go into edits that are measured on them" in errors
    assert read_concept_answers(Path("one/labels.csv"))[0].split == "test"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "vall"], "--split vall: did you mean 'val'?"),
        (["--classes", "Elsdn"], "no class 'Elsdn': did you mean 'Elsdon'?"),
        (["--pairs", "0"], "--pairs 0: expected 1 or more"),
        (["--top", "0"], "--top 0: expected 1 or more"),
        (["--out", "x.json"], "--out x.json: expected a table, such as 'x.csv'"),
        (["--base-url", "http://localhost/v1"], "--base-url needs --by MODEL"),
        (["--max-requests", "3"], "--max-requests needs --by MODEL"),
        (["--by", "gpt"], "wants a key: set the environment variable OPENAI_API_KEY"),
        (["--by", "gpt", "--base-url", "nowhere"], "--base-url: expected a URL"),
    ],
)
def test_bad_input_is_one_line(label, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    status, _, errors = label("y\n", *arguments)
    assert status == 2
    assert message in errors.splitlines()[-1]
    assert not Path("one/labels.csv").exists()


def test_a_broken_table_is_left_alone(label):
    Path("one/labels.csv").write_text(text := "path,label,split,x\na.png,Elsdon,val,perhaps\n")
    status, _, errors = label("y\n")
    assert status == 2
    assert errors.splitlines()[-1].startswith("error: 'one/labels.csv' line 2: 'x' is 'perhaps'; expected 1, 0 or ?")
    assert Path("one/labels.csv").read_text() == text


def test_runs_without_concepts_or_images(command, module, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    generator, y = np.random.default_rng(0), np.arange(90) % 3
    vectors = generator.normal(size=(6, 8)).astype(np.float32)
    x = (vectors[y] + 0.1 * generator.normal(size=(90, 8))).astype(np.float32)
    split = np.repeat(["train", "val", "test"], 30)
    np.savez("f.npz", X=x, y=y, classes=["a", "b", "c"], split=split)
    np.savez("words.npz", names=[f"word {k}" for k in range(6)], vectors=vectors)
    quiet = ["trainer.progress=false", "controls=false", "report=false", "nec=[]"]
    for method, message in (
        ("posthoc", "there is nothing to look at: "),
        ("linear_probe", "has no concepts to explain or edit"),
    ):
        bank = ["concepts=words.npz"] if method == "posthoc" else []
        given = ["dataset=features", "dataset.root=f.npz", f"method={method}", f"run_dir={method}"]
        status, errors = command("train", *given, *bank, *quiet)
        assert status == 0, errors
        status, _, errors = module("label", method)
        assert status == 2
        assert message in errors.splitlines()[-1]


def test_a_model_answers_and_is_never_mixed_with_people(label, server, tmp_path: Path):  # noqa: F811
    def answer(handler, body):
        text = body["messages"][0]["content"][0]["text"]
        send(200, completion("unsure" if "bill" in text else "Yes." if "tail" in text else "no"))(handler, body)

    server.always = answer
    shutil.rmtree(Path(CACHE) / "vision", ignore_errors=True)
    asked = ("--by", "team/tiny", "--base-url", server.url, "--pairs", "12", "--concurrency", "4")
    status, out, errors = label("", *asked, "--max-requests", "5")
    assert status == 0, errors
    assert len(server.bodies) == 5
    assert "stopped at --max-requests 5: run the same command again to go on" in errors
    status, out, errors = label("", *asked)
    assert status == 0, errors
    answers = read_concept_answers(Path("one/labels.team-tiny.csv"))
    assert len(server.bodies) == len(answers)  # no question is paid twice
    assert sum(each.shown is not None for each in answers) == 12
    for each in answers:
        assert each.shown is (None if "bill" in each.concept else "tail" in each.concept)
    assert "model:team/tiny: true for" in out
    assert json.loads(Path("one/labels.team-tiny.json").read_text())["by"] == "model:team/tiny"
    assert not Path("one/labels.csv").exists()
    status, _, errors = label("y\n", "--out", "one/labels.team-tiny.csv")
    assert status == 2
    assert "has answers by model:team/tiny, not by people: choose another --out" in errors
    paid = len(server.bodies)
    status, _, errors = label("", *asked, "--out", "again.csv")
    assert status == 0, errors
    assert len(server.bodies) == paid  # the answers are kept in the cache too
    server.always = send(400, {"error": {"message": "no pictures here"}})
    status, _, errors = label("", *asked[:-4], "--out", "more.csv", "--seed", "4")
    assert status == 2
    assert "no pictures here" in errors.splitlines()[-1]
