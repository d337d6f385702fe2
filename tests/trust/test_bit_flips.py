"""Single bits of what is read back are flipped: one line that names the file, or the same as before."""

import json
import random
from pathlib import Path

import pytest
import torch
from birds_run import QUICK, small

import cbm
from cbm.concepts import Concept, ConceptBank, load_bank
from cbm.data import TextStore
from cbm.data.shards import find_shards, read_shard, write_shard
from cbm.data.vocabulary_store import VocabularyStore
from cbm.editing import load_gate, load_source_card
from cbm.editing.domains.gate import Gate
from cbm.errors import UserError
from cbm.files.predictions import read_predictions
from cbm.files.run_directory import read_metrics
from cbm.files.tensors import read_tensors, write_tensors
from cbm.metrics.nec import load_heads


def flips(content: bytes, count: int, seed: int = 0):
    """The content with one bit changed, ``count`` times."""
    generator = random.Random(seed)
    for _ in range(count):
        changed = bytearray(content)
        changed[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        yield bytes(changed)


def everything(run: Path) -> str:
    """All numbers and words that come back from a run directory."""
    model = cbm.load(run)
    assert model.bank is not None
    card = load_source_card(run / "source_card.safetensors")
    heads = load_heads(run / "nec.safetensors")
    tensors = [*model.model.state_dict().items(), ("embeddings", model.bank.directions()), ("x", card.x), ("y", card.y)]
    tensors += [(str(head), head.weight) for head in heads]
    kept = read_predictions(run)
    tensors += [(name, torch.from_numpy(getattr(kept, name))) for name in ("decisions", "confidence", "probabilities")]
    words = [model.classes, model.bank.concepts, model.bank.dropped, model.config, read_metrics(run)]
    return str(words) + str([(name, tensor.double().tolist()) for name, tensor in tensors])


def test_every_file_of_a_run(command):
    arguments = ["run_dir=run", "report=false", "controls=false", "method.max_epochs=2", "shots=2"]
    settings = [setting for setting in [*small(), *QUICK] if not setting.startswith("method.")]
    status, errors = command("train", *settings, *arguments)
    assert status == 0, errors
    run = Path("run")
    before = everything(run)
    # tables for people, which nothing reads, carry no checksum
    files = [
        path for path in run.rglob("*") if path.is_file() and path.name not in ("log.csv", "concepts.csv", ".lock")
    ]
    assert {path.name for path in files} == {
        "config.yaml", "metrics.json", "about.json", "state.json", "bank.json", "embeddings.safetensors",
        "model.safetensors", "nec.safetensors", "source_card.safetensors", "predictions.parquet",
    }  # fmt: skip
    for file in files:
        content = file.read_bytes()
        found = 0
        for changed in flips(content, 12):
            file.write_bytes(changed)
            try:
                assert everything(run) == before, file
            except UserError as error:
                found += 1
                assert str(run) in str(error)  # noqa: PT017
        file.write_bytes(content)
        if file.name != "state.json":
            assert found == 12, file
    assert everything(run) == before


def test_tensors_carry_their_checksum(tmp_path: Path):
    """Every single bit, of the header too."""
    file, weight = tmp_path / "w.safetensors", torch.randn(3, 2)
    write_tensors(file, {"w": weight}, {"kind": "w"})
    content = file.read_bytes()
    unseen = []
    for bit in range(8 * len(content)):
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        try:
            tensors, about = read_tensors(file)
        except UserError as error:
            assert "w.safetensors" in str(error)  # noqa: PT017
        else:
            assert torch.equal(tensors["w"], weight)
            assert about is None  # the name of the entry with the checksum: whoever needs it finds it missing
            unseen.append(bit // 8)
    assert {content[byte : byte + 1] for byte in unseen} <= {b"c", b"b", b"m"}


def test_gates(tmp_path: Path):
    Gate(torch.ones(3).double(), 0.25, 0.05).save(tmp_path / "gate.safetensors")
    for changed in flips((tmp_path / "gate.safetensors").read_bytes(), 100):
        (tmp_path / "gate.safetensors").write_bytes(changed)
        with pytest.raises(UserError, match=r"gate\.safetensors"):
            load_gate(tmp_path / "gate.safetensors")


def test_embeddings_of_other_phrases(tmp_path: Path):
    ConceptBank("b", "s", (Concept("red"), Concept("blue")), "e", torch.eye(2)).save(tmp_path)
    content = json.loads((tmp_path / "bank.json").read_text())
    content["concepts"][0]["text"] = "rod"
    (tmp_path / "bank.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="of other phrases than the bank beside it"):
        load_bank(tmp_path)


def test_shards_are_dropped(tmp_path: Path):
    file = write_shard(tmp_path, "00000", {"x": torch.randn(4, 3)}, {"errors": {}})
    for changed in flips(file.read_bytes(), 100):
        file.write_bytes(changed)
        assert read_shard(file) is None
        assert find_shards(tmp_path) == {}
        assert file.read_bytes() == b""  # nobody can take a later file of this name for this one


class Lengths:
    """Reads texts without weights."""

    fingerprint, dim = "lengths", 2

    def encode_text(self, texts, *, progress=False):
        return torch.tensor([[float(len(text)), 1.0] for text in texts])


@pytest.mark.parametrize("kind", [TextStore, VocabularyStore])
def test_damaged_texts_are_encoded_again(tmp_path: Path, kind: type):
    def encoded() -> torch.Tensor:
        found = kind(tmp_path).encode(Lengths(), ["red", "green"], progress=False)
        return (found if isinstance(found, torch.Tensor) else torch.cat(list(found.parts()))).clone()

    before = encoded()
    for number in range(20):
        (file,) = tmp_path.rglob("*.safetensors")
        file.write_bytes(next(flips(file.read_bytes(), 1, seed=number)))
        assert torch.equal(encoded(), before)
