"""What unlabelled pictures say most: the function, and the command from pictures to a bank that trains."""

import json
import sys
from pathlib import Path

import pytest
import torch
from birds_run import QUICK, small
from conftest import one_line
from torch.nn.functional import normalize

from cbm.concepts import read_bank
from cbm.concepts.codebook import CodebookSettings, encode_pool, learn_codebook
from cbm.data.encoded import Encoding
from cbm.errors import UserError


class Words:
    """An embedded vocabulary in memory, in small parts."""

    def __init__(self, texts: list[str], embeddings: torch.Tensor):
        self.texts, self._embeddings = texts, embeddings
        self.passes = 0

    def __len__(self) -> int:
        return len(self.texts)

    def parts(self):
        self.passes += 1
        return self._embeddings.split(50)


def planted_pool(noise: float = 0.02):
    """3 classes, 4 planted concepts each, among 500; 40 pictures per class."""
    g = torch.Generator().manual_seed(0)
    vectors = normalize(torch.randn(500, 64, generator=g), dim=1)
    centres = normalize(vectors[:12].view(3, 4, 64).sum(dim=1), dim=1)
    pool = centres.repeat_interleave(40, dim=0)
    pool = normalize(pool + noise * torch.randn(pool.shape, generator=g), dim=1)
    return Words([f"word{i}" for i in range(500)], vectors), centres, pool


def test_each_class_gets_what_its_pictures_show():
    words, centres, pool = planted_pool()
    settings = CodebookSettings(pictures=40, k=4, per_class=4, centred=False)  # three classes are all of the mean
    book = learn_codebook(["a", "b", "c"], centres, pool, words, "mine", settings)
    for c, name in enumerate("abc"):
        own = {concept.text for concept in book.bank.concepts if name in concept.classes}
        assert own == {f"word{i}" for i in range(4 * c, 4 * c + 4)}
    assert words.passes == 1  # whatever the number of classes
    assert book.record["shortfall"] == {}


def test_a_shortfall_is_reported_and_never_padded():
    words, centres, pool = planted_pool()
    settings = CodebookSettings(pictures=5, k=4, per_class=400)
    book = learn_codebook(["a", "b", "c"], centres, pool, words, "mine", settings)
    assert book.record["shortfall"]["a"] > 380
    counts = [n for concept in book.bank.concepts for n in concept.provenance["counts"].values()]
    assert min(counts) >= 1


def test_words_that_name_a_class_are_never_tokens():
    words, centres, pool = planted_pool()
    words.texts[0] = "red cat"
    book = learn_codebook(["cat", "b", "c"], centres, pool, words, "mine", CodebookSettings(pictures=40, k=4))
    assert "red cat" not in book.bank.texts
    assert book.record["naming_a_class"] == 1


def test_counts_above_chance():
    words, centres, pool = planted_pool()
    noise = normalize(torch.randn(pool.shape, generator=torch.Generator().manual_seed(1)), dim=1)
    settings = CodebookSettings(pictures=40, k=4, min_count=None)
    book = learn_codebook(["a", "b", "c"], centres, pool, words, "mine", settings)
    assert book.record["above_chance"]["a"] >= 4
    assert book.record["min_count"] == book.record["chance_count"] > 1
    strict = CodebookSettings(pictures=3, k=1, min_count=3)
    with pytest.raises(UserError, match="no concept was counted at least"):
        learn_codebook(["a", "b", "c"], centres, noise[:6], words, "mine", strict)


def test_impossible_settings():
    words, centres, pool = planted_pool()
    with pytest.raises(UserError, match="--per-class is 0"):
        CodebookSettings(per_class=0)
    words.texts = ["cat"] * 500
    with pytest.raises(UserError, match="name a class"):
        learn_codebook(["cat", "b", "c"], centres, pool, words, "mine", CodebookSettings())


def test_a_pool_is_a_folder_of_any_depth(colour_folder: Path, pixel_encoder, tmp_path: Path):
    settings = Encoding(tmp_path / "cache", num_workers=0)
    (colour_folder / "red" / "broken.png").write_bytes(b"not a picture")
    features = encode_pool(colour_folder, pixel_encoder, settings)
    assert features.shape == (60, 16)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(60))
    with pytest.raises(UserError, match="no pictures in"):
        encode_pool(tmp_path / "nowhere", pixel_encoder, settings)


# ------------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def v2c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path):
    """Run ``python -m cbm concepts v2c`` on the colours: returns (exit status, what it wrote to stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str]:
        from cbm.commands.main import main

        monkeypatch.setattr(sys, "argv", ["cbm", "concepts", "v2c", "folder", *arguments])
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, capsys.readouterr().err

    return run


def test_from_pictures_to_a_trained_model(v2c, command, colour_folder: Path, tmp_path: Path):
    words = tmp_path / "words.txt"
    colours, parts = ("red", "green", "blue", "white"), ("belly", "wing", "crown")
    words.write_text("\n".join(f"{colour} {part}" for colour in colours for part in parts))
    arguments = [f"--root={colour_folder}", f"--vocabulary={words}", "--shots=4", "--k=2", "--pictures=9"]
    status, errors = v2c("--out", "bank", *arguments)
    assert status == 0, errors
    bank, record = read_bank(tmp_path / "bank"), json.loads((tmp_path / "bank" / "generation.json").read_text())
    assert set(bank.classes) == {"red", "green", "blue"}
    assert not any(word in bank.texts for word in ("red belly", "green wing", "blue crown"))  # they name the class
    assert record["vocabulary"] == 12
    assert record["naming_a_class"] == 9
    assert "is there already" in one_line(v2c("--out", "bank", *arguments))
    settings = [f"dataset.root={colour_folder}", "trainer.progress=false", "encoder.num_workers=0", "nec=[]"]
    status, errors = command("train", "method=v2c", "dataset=folder", "concepts=bank", "method.max_epochs=3", *settings)
    assert status == 0, errors


def test_bad_options_are_one_line(v2c, colour_folder: Path, tmp_path: Path):
    root = ["--out", "bank", "--root", str(colour_folder), "--nouns", "5"]
    assert "expected a number" in one_line(v2c(*root, "--shots", "few"))
    assert "adjective" in one_line(v2c(*root, "--patterns", "adjectiv"))
    assert "no pictures in" in one_line(v2c(*root, "--pool", str(tmp_path / "nowhere"), "--patterns", "adjective"))
    assert "--k is 0" in one_line(v2c(*root, "--k", "0"))
    assert not (tmp_path / "bank").exists()


def test_the_method_trains_on_birds(command):
    status, errors = command("train", "method=v2c", "dataset=birds", "method.concepts_per_class=10", *small(), *QUICK)
    assert status == 0, errors
