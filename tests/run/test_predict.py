"""``python -m cbm predict``: a table of any number of images, whole or taken up where it stopped."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import COLOURS, PROJECT, paint
from explored_run import trained
from PIL import Image

import cbm
from cbm.data.images import Images, list_names
from cbm.editing import Edit, EditSet
from cbm.errors import UserError
from cbm.report.predictions import Shown, predictions_page
from cbm.run import predict as module_under_test
from cbm.run.predict import predict, table_rows
from cbm.run.sources import Batch, FeatureSource, ImageSource, NameList, find_images
from cbm.run.unfinished import Unfinished, take_up, unfinished_table

SIZE = ["--batch-size", "8", "--workers", "0"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """30 images at different depths."""
    for c, (name, colour) in enumerate(COLOURS.items()):
        for i in range(10):
            paint(tmp_path / "images" / name / ("deeper" * (i % 2)) / f"{i}.png", colour, 50 * c + i)
    return tmp_path / "images"


def run() -> str:
    return str(trained("labo"))


def read(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def interrupt(module, monkeypatch: pytest.MonkeyPatch, after: int, *arguments: str) -> None:
    """Predict some batches and stop as Ctrl-C does."""
    whole = ImageSource.batches

    def some(source: ImageSource, start: int, stop: int, size: int) -> Iterator[Batch]:
        for number, batch in enumerate(whole(source, start, stop, size)):
            if number == after:
                raise KeyboardInterrupt
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(ImageSource, "batches", some)
        status, _, errors = module("predict", *arguments)
    assert status == 130
    assert "run the same command again" in errors


def test_a_table_says_what_the_model_says(module, folder: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = np.asarray(Image.linear_gradient("L").resize((40, 24)))
    Image.fromarray(grey).save(folder / "turned.png", exif=exif)
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(np.dstack([grey] * 4)).save(folder / "clear.png")
    status, out, errors = module("predict", run(), str(folder), "--out", "new/p.csv", "--top", "2")
    assert status == 0, errors
    assert "new/p.csv: 33 images" in out
    rows = read("new/p.csv")
    assert [row["name"] for row in rows] == list_names(folder)
    assert list(rows[0]) == [
        "name", "label", "probability", "concept_1", "contribution_1", "concept_2", "contribution_2", "error",
    ]  # fmt: skip
    found = cbm.load(run()).predict([folder / row["name"] for row in rows])
    assert [row["label"] for row in rows] == found.labels
    for i, row in enumerate(rows):
        assert float(row["probability"]) == pytest.approx(float(found.probabilities[i].max()), abs=1e-5)
        said = [(row[f"concept_{k}"], pytest.approx(float(row[f"contribution_{k}"]), rel=1e-4)) for k in (1, 2)]
        assert said == found.explain(i, top=2)
        assert row["error"] == ""
    assert sorted(path.name for path in Path("new").iterdir()) == ["p.csv"]
    status, _, errors = module("predict", run(), str(folder), "--out", "new/p.csv")
    assert status == 2
    assert errors.endswith("\nerror: 'new/p.csv' is there already: remove it or choose another --out\n")


def test_files_are_called_as_they_were_given(module, folder: Path):
    status, _, errors = module("predict", run(), "images/red/0.png", str(folder / "blue"), "--out", "p.csv", *SIZE)
    assert status == 0, errors
    names = [row["name"] for row in read("p.csv")]
    assert names[:2] == ["images/red/0.png", str(folder / "blue/0.png")]
    assert len(names) == 11


@pytest.mark.parametrize("method", ["energy", "linear_probe"])
def test_a_model_without_linear_concepts(module, folder: Path, method: str):
    status, _, errors = module("predict", str(trained(method)), str(folder), "--out", "p.csv", "--html", "p.html")
    assert status == 0, errors
    assert list(read("p.csv")[0]) == ["name", "label", "probability", "error"]
    assert "This page shows all 30 images of the table." in Path("p.html").read_text()


def test_images_that_cannot_be_read(module, folder: Path):
    (folder / "red/0.png").write_bytes(b"no image")
    (folder / "blue/2.png").write_bytes((folder / "blue/4.png").read_bytes()[:60])
    (folder / "gone.png").symlink_to("nothing")
    status, _, errors = module("predict", run(), str(folder), "--out", "p.csv", "--html", "p.html", *SIZE)
    assert status == 0, errors
    failed = {row["name"]: row for row in read("p.csv") if row["error"]}
    assert set(failed) == {"red/0.png", "blue/2.png", "gone.png"}
    for row in failed.values():
        assert {row["label"], row["probability"], row["concept_1"]} == {""}
    assert "3 of them cannot be read and have no label, first 'blue/2.png': " in " ".join(errors.split())
    assert "3 of the 31 could not be read and have no label" in Path("p.html").read_text()
    shutil.rmtree(folder / "red")
    shutil.rmtree(folder / "green")
    for file in folder.rglob("*.png"):
        file.unlink()
    (folder / "x.png").write_bytes(b"")
    status, _, errors = module("predict", run(), str(folder), "--out", "q.csv")
    assert status == 1
    assert [row["label"] for row in read("q.csv")] == [""]


@pytest.mark.parametrize("damage", ["whole batches", "in the middle of a row", "in the first line", "nothing written"])
def test_an_interrupted_table_goes_on(module, folder: Path, monkeypatch: pytest.MonkeyPatch, damage: str):
    odd = 'a,"b"\nc\r.png'
    shutil.copy(folder / "red/0.png", folder / odd)
    (folder / "blue/2.png").write_bytes(b"no image")
    assert module("predict", run(), str(folder), "--out", "whole.csv", *SIZE)[0] == 0
    interrupt(module, monkeypatch, 3, run(), str(folder), "--out", "p.csv", *SIZE)
    partial = Path("p.csv.partial")
    content = partial.read_bytes()
    assert Path("whole.csv").read_bytes().startswith(content)
    assert content.count(b"\n") == 1 + 24 + 1  # the first row has two lines
    cut = {"in the middle of a row": content.index(b"\nc\r") + 1, "in the first line": 5, "nothing written": 0}
    partial.write_bytes(content[: cut.get(damage, len(content))])
    assert not Path("p.csv").exists()
    status, _, errors = module("predict", run(), str(folder), "--out", "p.csv", *SIZE)
    assert status == 0, errors
    assert ("24 of 31 images were predicted before: going on" in errors) == (damage == "whole batches")
    assert "1 of them cannot be read" in errors
    assert Path("p.csv").read_bytes() == Path("whole.csv").read_bytes()
    assert read("p.csv")[0]["name"] == odd
    assert sorted(path.name for path in Path().glob("p.csv*")) == ["p.csv"]


@pytest.mark.parametrize("cut", range(40, 400, 90))
def test_a_kill_at_any_byte(module, folder: Path, monkeypatch: pytest.MonkeyPatch, cut: int):
    arguments = (run(), str(folder), "--batch-size", "2", "--workers", "0")
    assert module("predict", *arguments, "--out", "whole.csv")[0] == 0
    interrupt(module, monkeypatch, 4, *arguments, "--out", "p.csv")
    partial = Path("p.csv.partial")
    partial.write_bytes(partial.read_bytes()[:cut])
    assert module("predict", *arguments, "--out", "p.csv")[0] == 0
    assert Path("p.csv").read_bytes() == Path("whole.csv").read_bytes()


@pytest.mark.parametrize("facts", [b"[" * 100_000, b"[]", b"\xff", b"{"])
def test_facts_that_cannot_be_read(tmp_path: Path, facts: bytes):
    (tmp_path / "p.csv.partial").write_bytes(b"name\n")
    (tmp_path / "p.csv.partial.json").write_bytes(facts)
    with (
        unfinished_table(tmp_path / "p.csv") as unfinished,
        pytest.raises(UserError, match=r"are made from cannot be read from '.*p.csv.partial.json': remove"),
    ):
        take_up(unfinished, {}, NameList([], tmp_path))


def test_what_is_another_is_said_instead_of_mixed(module, folder: Path, monkeypatch: pytest.MonkeyPatch):
    EditSet((Edit("remove", "forked tail"),)).save(Path("edits.yaml"))
    base = (run(), str(folder), "--out", "p.csv")
    interrupt(module, monkeypatch, 2, *base, *SIZE)
    content = Path("p.csv.partial").read_bytes()

    def refused(*arguments: str) -> str:
        status, _, errors = module("predict", *arguments)
        assert status == 2, errors
        assert Path("p.csv.partial").read_bytes() == content
        assert "remove 'p.csv.partial' to begin again" in errors
        return errors

    assert "had another --batch-size (8 then, 4 now)" in refused(*base, "--batch-size", "4", "--workers", "0")
    assert "had another --top" in refused(*base, *SIZE, "--top", "1")
    assert "had another model (or other edits)" in refused(*base, *SIZE, "--edits", "edits.yaml")
    other = (str(trained("posthoc")), *base[1:], *SIZE)
    assert "had another model (or other edits)" in refused(*other)
    shutil.copytree(folder, folder.parent / "copy")
    assert "had another place of the images" in refused(run(), "copy", "--out", "p.csv", *SIZE)
    paint(folder / "new.png", COLOURS["red"], 1)
    assert "had another number of images (30 then, 31 now)" in refused(*base, *SIZE)
    (folder / "red/0.png").unlink()
    assert "had another list of images" in refused(*base, *SIZE)
    paint(folder / "red/0.png", COLOURS["red"], 0)
    (folder / "new.png").unlink()
    facts = Path("p.csv.partial.json").read_text()
    Path("p.csv.partial.json").write_text(facts[:50])
    assert "cannot be read from 'p.csv.partial.json'" in refused(*base, *SIZE)
    Path("p.csv.partial.json").unlink()
    os.mkfifo("p.csv.partial.json")  # not waited for
    assert "cannot be read from 'p.csv.partial.json'" in refused(*base, *SIZE)
    Path("p.csv.partial.json").unlink()
    Path("p.csv.partial.json").write_text(facts)
    lines = content.split(b"\n")
    content = b"\n".join([lines[0], lines[2], lines[1], *lines[3:]])
    Path("p.csv.partial").write_bytes(content)
    assert "row 1 of 'p.csv.partial' is damaged" in refused(*base, *SIZE)
    Path("p.csv.partial").unlink()
    assert module("predict", *base, *SIZE)[0] == 0


def test_more_images_while_it_runs_are_not_in_the_table(folder: Path, tmp_path: Path):
    model = cbm.load(run())
    source = images_of(model, folder, tmp_path)
    paint(folder / "a.png", COLOURS["red"], 1)
    (folder / "red/0.png").unlink()
    result = predict(model, source, tmp_path / "p.csv", batch_size=8)
    assert (result.images, result.failed) == (30, 1)
    assert [row["name"] for row in read(tmp_path / "p.csv") if row["error"]] == ["red/0.png"]


def images_of(model: cbm.TrainedModel, folder: Path, beside: Path) -> ImageSource:
    root, names = find_images([folder])
    return ImageSource(model.encoder, root, NameList(names, beside), 0)


def test_edits_change_the_table(module, folder: Path):
    model = cbm.load(run())
    concept = model.predict([folder / "red/0.png"]).explain(0, top=1)[0][0]
    EditSet((Edit("remove", concept), Edit("remove", "forked tail", domain="elsewhere"))).save(Path("edits.yaml"))
    arguments = (run(), "images/red/0.png", "--edits", "edits.yaml")
    status, _, errors = module("predict", *arguments, "--out", "p.csv", "--html", "p.html")
    assert status == 0, errors
    assert "edits of 'elsewhere' do not act (--domain 'elsewhere' says that images come from there)" in errors
    (row,) = read("p.csv")
    assert concept not in row.values()
    edited = model.with_edits("edits.yaml").predict([folder / "red/0.png"])
    assert row["label"] == edited.labels[0]
    assert float(row["probability"]) == pytest.approx(float(edited.probabilities.max()), abs=1e-5)
    assert "The model was changed after training" in Path("p.html").read_text()
    status, _, errors = module("predict", *arguments, "--out", "q.csv", "--domain", "elsewhere")
    assert status == 0, errors
    assert "do not act" not in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["empty", "--out", "p.csv"], "no images below 'empty'"),
        (["nowhere", "--out", "p.csv"], "no file or folder 'nowhere'"),
        (["images/red/0.png", "nowhere.png", "--out", "p.csv"], "no file or folder 'nowhere.png'"),
        (["pipe.png", "--out", "p.csv"], "'pipe.png' is neither a file nor a folder"),
        (["images", "--out", "p.csv", "--html", "there.html"], "--html 'there.html' is there already"),
        (["images", "--out", "p.csv", "--top", "-1"], "--top -1: expected 0 or more"),
        (["images", "--out", "p.csv", "--domain", "x"], "--domain says which edits act: say --edits too"),
        (["images", "--out", "there.html/p.csv"], "cannot write 'there.html'"),
        (["images", "--out", "p.csv", "--edits", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_bad_input(module, folder: Path, arguments: list[str], message: str):
    Path("empty/.hidden").mkdir(parents=True)
    Path("there.html").touch()
    os.mkfifo("pipe.png")
    status, _, errors = module("predict", run(), *arguments)
    assert status == 2
    lines = errors.splitlines()
    assert lines[-1].startswith("error: ")
    assert message in lines[-1]
    assert "Traceback" not in errors
    assert not Path("p.csv").exists()


def test_names_that_are_no_text(module, folder: Path):
    name = os.fsdecode(b"caf\xe9.png")
    try:
        shutil.copy(folder / "red/0.png", folder / name)
    except OSError:
        pytest.skip("a file system that takes UTF-8 only")
    (folder / os.fsdecode(b"caf\xe8.png")).write_bytes(b"no image")
    status, _, errors = module("predict", run(), str(folder), "--out", "p.csv", "--html", "p.html", *SIZE)
    assert status == 0, errors
    rows = {row["name"]: row for row in read("p.csv")}
    assert rows["caf\\udce9.png"]["label"] == rows["red/0.png"]["label"]
    assert rows["caf\\udce8.png"]["error"]
    assert "caf\\udce9.png" in Path("p.html").read_text(encoding="utf-8")


def test_everything_on_the_page_is_escaped(module, folder: Path):
    shutil.copy(folder / "red/0.png", folder / "<b>&.png")
    status, _, errors = module("predict", run(), str(folder), "--out", "p.csv", "--html", "p.html", *SIZE)
    assert status == 0, errors
    page = Path("p.html").read_text()
    assert "&lt;b&gt;&amp;.png" in page
    assert "<b>" not in page
    assert page.count("data:image/png;base64,") == 31
    first = read("p.csv")[0]
    assert f"<h2>{first['label']} <small>" in page
    assert first["concept_1"] in page
    many = [Shown("<i>", "<u>", 0.5, error="<s>")]
    assert not {"<i>", "<u>", "<s>"} & set(predictions_page("<i>", ["<u>"], many, 5000, 1).split())
    assert "first 1 of 5,000 images" in predictions_page("x", [], many, 5000, 1)


def test_a_page_has_the_first_images(module, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module_under_test, "ON_THE_PAGE", 5)
    interrupt(module, monkeypatch, 2, run(), str(folder), "--out", "p.csv", "--html", "p.html", *SIZE)
    assert not Path("p.html").exists()
    status, _, errors = module("predict", run(), str(folder), "--out", "p.csv", "--html", "p.html", *SIZE)
    assert status == 0, errors
    page = Path("p.html").read_text()
    assert "This page shows the first 5 of 30 images; the table has all of them." in page
    assert page.count("<article>") == 5


def test_a_page_without_its_table_goes_on(module, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """A kill between the two: the page is there, and it is that of the table that is taken up."""
    words = (run(), str(folder), "--out", "p.csv", "--html", "p.html", *SIZE)
    with monkeypatch.context() as patch:
        patch.setattr(Unfinished, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert module("predict", *words)[0] == 130
    assert Path("p.html").exists()
    assert not Path("p.csv").exists()
    status, _, errors = module("predict", *words)
    assert status == 0, errors
    assert Path("p.csv").exists()
    status, _, errors = module("predict", run(), str(folder), "--out", "q.csv", "--html", "p.html", *SIZE)
    assert "--html 'p.html' is there already" in errors


class Ready:
    """Features that are ready: a source without images, which counts what is pulled."""

    def __init__(self, x: torch.Tensor, count: int, folder: Path):
        self.place, self.encoder, self.device = "features.npz", "somebody's", "cpu"
        self.names = NameList((f"row {i}" for i in range(count)), folder)
        self.x, self.pulled = x, 0

    def batches(self, start: int, stop: int, size: int) -> Iterator[Batch]:
        for at in range(start, stop, size):
            names = list(self.names.read(at, min(at + size, stop)))
            self.pulled += len(names)
            yield Batch(names, self.x[torch.arange(at, at + len(names)) % len(self.x)])

    def pictures(self, names: list[str]) -> Images | None:
        return None


def test_features_in_place_of_images(tmp_path: Path):
    model = cbm.load(run())
    x = model.split("test", cache=trained("labo").parent / "cache").x[:50] * 3  # of any norm
    x[7] = float("nan")
    source = Ready(x, 50, tmp_path)
    result = predict(model, source, tmp_path / "p.csv", batch_size=16, page=tmp_path / "p.html")
    assert (result.images, result.failed) == (50, 1)
    assert result.first == "'row 7': its features are NaN, infinite or zero"
    rows = read(tmp_path / "p.csv")
    good = [i for i in range(50) if i != 7]
    assert [rows[i]["label"] for i in good] == model.predict_features(x[good]).labels
    assert "no picture" in (tmp_path / "p.html").read_text()


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path):
    model = cbm.load(run())
    x = model.split("test", cache=trained("labo").parent / "cache").x[:100]
    peaks = {}
    for count in (2_000, 2_000, 12_000):  # the first is for what is made once
        source = Ready(x, count, tmp_path)
        tracemalloc.start()
        predict(model, source, tmp_path / f"{len(peaks)}-{count}.csv", batch_size=100)
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        (tmp_path / f"{len(peaks) - 1}-{count}.csv").unlink(missing_ok=True)
        assert source.pulled == count
    assert peaks[12_000] < peaks[2_000] + 200_000  # 10,000 names in a list would be more than half a megabyte


def test_names_are_asked_for_as_they_are_needed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = cbm.load(run())
    source = images_of(model, folder, tmp_path)
    asked = []
    whole = NameList.read

    def counted(names: NameList, start: int = 0, stop: int | None = None) -> Iterator[str]:
        for name in whole(names, start, stop):
            asked.append(name)
            yield name

    monkeypatch.setattr(NameList, "read", counted)
    batches = source.batches(0, 30, 4)
    for taken in (4, 8, 12):
        assert len(next(batches).names) == 4
        assert len(asked) == taken
    workers = ImageSource(model.encoder, folder, source.names, 1).batches(0, 30, 2)
    asked.clear()
    assert next(workers).names == list_names(folder)[:2]
    assert len(asked) <= 2 * 4  # what one process reads ahead


def test_list_of_names(tmp_path: Path):
    names = NameList((f"folder {i}/{'long ' * 40}{i}.png" for i in range(5000)), tmp_path)
    assert len(names) == 5000
    for start, stop in ((0, 0), (0, 1), (17, 4000), (4999, 5000), (5000, 5000)):
        found = [name.split("/")[0] for name in names.read(start, stop)]
        assert found == [f"folder {i}" for i in range(start, stop)]
    assert len(list(names.read())) == 5000
    assert not list(tmp_path.iterdir())


def test_rows_of_a_batch_without_images():
    model = cbm.load(run())
    rows = table_rows(model, Batch(["a", "b"], torch.empty(0, 4), {0: "why", 1: "not"}), 1)
    assert rows == [["a", "", "", "", "", "why"], ["b", "", "", "", "", "not"]]


def start(folder: Path, *more: str) -> subprocess.Popen:
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "cbm", "predict", run(), str(folder), "--out", "p.csv", "--workers", "1", *more],
        cwd=folder.parent, env=os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_a_killed_process_lets_another_go_on_at_once(module, folder: Path):
    for i in range(200):
        (folder / f"{i:04d}.png").hardlink_to(folder / "red/0.png")
    first = start(folder, "--batch-size", "4")
    partial = folder.parent / "p.csv.partial"
    try:
        while first.poll() is None and (not partial.exists() or partial.stat().st_size < 5000):
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        second = start(folder, "--batch-size", "4")
        said = second.communicate()[0]
        assert second.returncode == 2
        assert "another process is writing 'p.csv'" in said
    finally:
        first.send_signal(signal.SIGKILL)  # it holds its files up to here, and its process that decodes beyond
        first.wait()
    assert not Path("p.csv").exists()
    arguments = (run(), str(folder), "--batch-size", "4")
    status, _, errors = module("predict", *arguments, "--out", "p.csv")  # its process that decodes may still be there
    assert status == 0, errors
    assert "of 230 images were predicted before: going on" in errors
    assert module("predict", *arguments, "--out", "whole.csv")[0] == 0
    assert Path("p.csv").read_bytes() == Path("whole.csv").read_bytes()


def test_files_of_features(module, tmp_path: Path):
    x = cbm.load(run()).split("test", cache=trained("labo").parent / "cache").x[:50].numpy()
    np.savez("new.npz", X_train=x[:20], X_test=4 * x[20:], y_test=np.arange(30))  # labels are not looked at
    more = ["--out", "p.csv", "--batch-size", "7", "--html", "p.html"]
    status, printed, errors = module("predict", run(), "new.npz", *more)
    assert status == 0, errors
    assert "p.csv: 50 images" in printed
    rows = read("p.csv")
    assert [row["label"] for row in rows] == cbm.load(run()).predict(x).labels
    assert [rows[0]["name"], rows[49]["name"]] == ["train/0000000", "test/0000029"]
    assert "only its features are known" in Path("p.html").read_text()
    source = FeatureSource(Path("new.npz"), tmp_path)
    batches = list(source.batches(14, 50, 7))
    assert [len(batch.names) for batch in batches] == [7, 7, 7, 7, 7, 1]
    assert torch.allclose(batches[0].features[6], torch.from_numpy(4 * x[20]))
    np.savez("narrow.npz", X=x[:, :3])
    status, _, errors = module("predict", run(), "narrow.npz", "--out", "n.csv")
    assert status == 2
    assert "[50, 3], this model reads" in errors
    assert not list(Path().glob("n.csv*"))  # the right ones can be given now
    status, _, errors = module("predict", run(), "no.npz", "--out", "n.csv")
    assert status == 2
    assert "no file or folder 'no.npz'" in errors


def test_features_of_several_models_in_one_file(tmp_path: Path):
    x = np.arange(12.0).reshape(4, 3)
    np.savez(tmp_path / "two.npz", X=-x, mine=x, tag=np.array(list("abcd")))
    source = FeatureSource(tmp_path / "two.npz", tmp_path, "mine", "tag")  # what the run was trained on
    assert next(source.batches(0, 4, 4)).features.tolist() == x.tolist()
    assert list(source.names.read()) == list("abcd")
    assert FeatureSource(tmp_path / "two.npz", tmp_path, "gone").shape == (4, 3)
