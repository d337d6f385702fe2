"""Features in, explained model out: no encoder is loaded, named or pretended, and everything later knows it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from birds_run import small
from conftest import one_line

import cbm
from cbm.app import Explorer
from cbm.app.session import Session
from cbm.report.command import reproduce_command

DIM, CLASSES = 16, ["cat", "dog", "emu", "fox"]
GENERATOR = np.random.default_rng(0)
WORDS = [f"{what} {part}" for part in ("ears", "tail", "fur") for what in ("long", "short", "pale", "dark")]
VECTORS = GENERATOR.normal(size=(12, DIM)).astype(np.float32)
OWNED = {name: WORDS[i::4] for i, name in enumerate(CLASSES)}
QUIET = ["trainer.progress=false", "cache=cache", "controls=false"]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Planted features: an image of class c is the sum of the words of c, and noise."""
    y = np.tile(np.arange(4), 40)
    shown = np.eye(4, dtype=np.float32)[y][:, np.arange(12) % 4]
    flips = GENERATOR.random(shown.shape) < 0.1
    shown = np.abs(shown - flips)
    x = (shown @ VECTORS + 0.3 * GENERATOR.normal(size=(160, DIM))).astype(np.float16)
    split = np.array(["train"] * 100 + ["val"] * 20 + ["test"] * 40)
    names = np.array([f"img{i}.jpg" for i in range(160)])
    np.savez(
        "f.npz", X=x, y=y, classes=CLASSES, split=split, names=names, concepts=shown, concept_names=np.array(WORDS)
    )
    np.savez("words.npz", names=np.array(WORDS), vectors=VECTORS)
    means = np.stack([VECTORS[i::4].sum(axis=0) for i in range(4)])
    np.savez("classes.npz", names=np.array(CLASSES), vectors=means)
    Path("owned.json").write_text(json.dumps(OWNED))
    return tmp_path


GIVEN = ["dataset=features", "dataset.root=f.npz", *QUIET]


def test_features_in_explained_model_out(command, module, files: Path):
    settings = ["method=labo", "concepts=owned.json", "concepts.embeddings=words.npz", "method.max_epochs=200"]
    settings += ["concepts.class_embeddings=classes.npz", "run_dir=one", "nec=[2]"]
    status, errors = command("train", *GIVEN, *settings)
    assert status == 0, errors
    metrics = json.loads(Path("one/metrics.json").read_text())
    assert metrics["test/accuracy"] > 0.85
    assert {"test/accuracy_nec2_resolved", "test/concept_accuracy"} <= set(metrics)
    about = json.loads(Path("one/about.json").read_text())
    assert about["encoder"] is None
    assert about["dim"] == DIM
    assert set(about["baselines"]) == {"zero_shot", "linear_probe"}
    assert "encoder: null" in Path("one/config.yaml").read_text()
    page = Path("one/report.html").read_text()
    assert "none: features were given" in page
    assert "only its features are known" in page
    assert "img12" in page

    model = cbm.load("one")
    x = np.load("f.npz")["X"]
    expected = model.split("test").y
    out = model.predict(x[120:])
    assert float((out.logits.argmax(1) == expected).double().mean()) == pytest.approx(metrics["test/accuracy"])
    assert torch.equal(out.logits, model.predict(torch.from_numpy(x[120:])).logits)
    assert len(out.explain(0, top=3)) == 3
    for form in (">f4", np.longdouble, ">f2"):
        assert model.predict(x[120:].astype(form)).labels == out.labels
    for wrong in (x[0].astype(np.float32), x[None].astype(np.float32), torch.from_numpy(x[0]), x.astype(np.int64)):
        with pytest.raises(cbm.UserError, match=r"features \[N, 16\]"):
            model.predict(wrong)
    np.savez("single.npz", X=x[:1], y=[0], classes=CLASSES)
    status, errors = command("eval", "run=one", "dataset=features", "dataset.root=single.npz", "cache=cache")
    assert status == 0, errors  # nothing varies in one image, and nothing is said of it
    with pytest.raises(cbm.UserError, match=r"\[160, 3\], this model reads \[N, 16\]"):
        model.predict(x[:, :3])
    for asked in (lambda: model.predict(["a.jpg"]), lambda: model.with_bank(["a new phrase"])):
        with pytest.raises(cbm.UserError, match="no encoder is known to read images or phrases"):
            asked()
    assert model.with_bank(model.bank).classes == CLASSES
    assert reproduce_command(model.config).startswith("python train.py method=labo dataset=features dataset.root=")
    assert "encoder" not in reproduce_command(model.config)

    status, errors = command("eval", "run=one", "cache=cache", "output=out.json")
    assert status == 0, errors
    found = json.loads(Path("out.json").read_text())
    assert found["test/accuracy"] == metrics["test/accuracy"]
    np.savez("new.npz", X=x[120:], y=np.load("f.npz")["y"][120:], classes=CLASSES)
    status, errors = command(
        "eval", "run=one", "cache=cache", "dataset=features", "dataset.root=new.npz", "output=n.json"
    )
    assert status == 0, errors
    found = json.loads(Path("n.json").read_text())
    assert found["data/n_test"] == 40  # all of it
    assert found["test/accuracy"] == metrics["test/accuracy"]
    narrow = np.load("f.npz")["X"][:, :8]
    np.savez("narrow.npz", X=narrow, y=np.load("f.npz")["y"], classes=CLASSES)
    said = one_line(command("eval", "run=one", "cache=cache", "dataset=features", "dataset.root=narrow.npz"))
    assert "[160, 8], this model reads [N, 16]" in said
    said = one_line(command("eval", "run=one", "cache=cache", "dataset=birds"))
    assert "no encoder is known" in said
    np.savez("shown.npz", X=x[:40], y=np.load("f.npz")["y"][:40], classes=CLASSES)
    support = ["editor=test_time", "editor.support=shown.npz", "editor.shots=8", "output=s.json"]
    status, errors = command("eval", "run=one", "cache=cache", *support)
    assert status == 0, errors
    assert json.loads(Path("s.json").read_text())["edits/n_support"] == 32
    Path("one/report.html").unlink()
    status, _, errors = module("report", "one", "--cache", "cache")
    assert status == 0, errors
    assert Path("one/report.html").is_file()

    explorer = Explorer("one", Path("cache"))
    session = Session(explorer)
    session.look_at(explorer.picture(0))
    assert session.picture.image is None
    session.hold(0)
    with pytest.raises(cbm.UserError, match="there is no image to look at"):
        session.look_for()


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("linear_probe", []),
        ("zero_shot", ["concepts.class_embeddings=classes.npz"]),
        ("cms", ["concepts=words.npz", "concepts.class_embeddings=classes.npz"]),
        ("posthoc", ["concepts=words.npz"]),
        ("posthoc", ["concepts=cav", "concepts.cav.per_concept=20"]),
        ("label_free", ["concepts=words.npz", "concepts.class_embeddings=classes.npz"]),
        ("label_free", ["concepts=words.npz", "method.class_cutoff=null"]),
        ("sparse", ["concepts=words.npz", "method.max_epochs=5"]),
        ("supervised", ["method.max_epochs=20"]),
        ("energy", ["method.max_epochs=5"]),
    ],
)
def test_every_method_that_can_run_does(command, files: Path, method: str, more: list[str]):
    status, errors = command("train", *GIVEN, f"method={method}", "run_dir=one", "report=false", "nec=[]", *more)
    assert status == 0, errors
    assert json.loads(Path("one/metrics.json").read_text())["test/accuracy"] > 0.3


def test_what_is_missing_is_said_before_anything_is_done(command, files: Path):
    said = one_line(command("train", *GIVEN, "run_dir=one"))
    assert "method=labo needs concepts with embeddings of their own" in said
    assert "method=linear_probe" in said
    assert "method=supervised" in said
    said = one_line(command("train", *GIVEN, "method=zero_shot", "run_dir=one"))
    assert "method=zero_shot needs embeddings of the class names (concepts.class_embeddings=FILE)" in said
    said = one_line(command("train", *GIVEN, "concepts=owned.json", "concepts.embeddings=word.npz", "run_dir=one"))
    assert "no file or folder 'word.npz' did you mean 'words.npz'" in said
    np.savez("wide.npz", names=np.array(WORDS), vectors=np.ones((12, DIM + 1)))
    said = one_line(command("train", *GIVEN, "method=posthoc", "concepts=wide.npz", "run_dir=one"))
    assert "embeddings of 17 dimensions, the features have 16" in said
    said = one_line(command("train", "dataset=features", "run_dir=one"))
    assert "needs to know where the features are: say dataset.root=/path/to/features" in said
    said = one_line(command("train", *GIVEN, "encoder=tiny_clip", "method=linear_probe", "run_dir=one"))
    assert "have 16 dimensions, those of encoder" in said
    assert not Path("one").exists()


def test_an_encoder_that_is_named_is_tried_on_the_images(command, tmp_path: Path):
    status, errors = command("train", "method=linear_probe", *small(), "trainer.progress=false", "run_dir=birds",
                             "encoder.num_workers=0", "report=false")  # fmt: skip
    assert status == 0, errors
    run = cbm.load("birds")
    images, data = run.read(("train", "val", "test"), cache=small()[1].removeprefix("cache="))
    names = [str(Path(images.splits[s].images.root) / name) for s in data.splits for name in data.splits[s].names]
    x = torch.cat([part.x for part in data.splits.values()]).numpy()
    labels = torch.cat([part.y for part in data.splits.values()]).numpy()
    split = np.repeat(list(data.splits), [len(part) for part in data.splits.values()])
    np.savez("f.npz", X=3 * x, y=labels, classes=data.classes, split=split, paths=names)
    settings = [*GIVEN, "encoder=tiny_clip", "method=posthoc", "concepts=birds", "method.lam=0.001", "nec=[]"]
    status, errors = command("train", *settings, "run_dir=one")
    assert status == 0, errors
    assert "the features are those of encoder" in errors
    model = cbm.load("one")
    assert model.predict([names[0]]).labels == model.predict(x[:1]).labels  # its encoder reads new images
    np.savez("g.npz", X=x[::-1], y=labels, classes=data.classes, split=split, paths=names)
    said = one_line(command("train", *settings, "dataset.root=g.npz", "run_dir=two"))
    assert "are not those of encoder" in said
