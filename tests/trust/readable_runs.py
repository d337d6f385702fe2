"""What commands leave and take up again, small and valid, with what reads it: runs, models, answers, stores."""

import asyncio
import csv
import hashlib
import io
import json
import shutil
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from conftest import PROJECT
from hand_made_run import write_run
from PIL import Image
from small_bottleneck import CLASSES, bank, bottleneck
from trust.readable import Readable, picture, tree

import cbm
from cbm.commands.banks import _class_names
from cbm.concepts import Concept, ConceptBank, load_bank
from cbm.concepts.llm.answers import Item
from cbm.concepts.llm.body import BodyError, BrokenBody, parse_body, read_body, read_completion
from cbm.concepts.llm.cache import AnswerCache
from cbm.concepts.llm.question import Answer, Request
from cbm.concepts.llm.vision import PROMPT, _former_answers
from cbm.data import FeatureSplit
from cbm.data.images import ImageArray
from cbm.data.index import FeatureIndex
from cbm.data.old_store import OldStores
from cbm.data.shards import CHECKSUM, find_shards, write_new_shard, write_shard
from cbm.data.store import _look_up
from cbm.data.text_store import TextStore
from cbm.data.vocabulary_store import VocabularyStore
from cbm.editing import load_gate, load_source_card
from cbm.editing.domains.gate import Gate
from cbm.editing.domains.source_card import SourceCard
from cbm.encoders.foreign_code import check_settings
from cbm.errors import UserError
from cbm.files.cache import read_cache
from cbm.files.parsing import read_json
from cbm.files.shipped import PACKAGE
from cbm.files.tensors import read_tensors
from cbm.layers import TopK, load_model, save_model
from cbm.metrics.nec import SparseHead, load_heads, save_heads
from cbm.metrics.pair_queue import PairQueue
from cbm.run.sources import NameList
from cbm.run.unfinished import take_up, unfinished_table

MODEL, X = bottleneck()
BANK = bank()
NAMES = [f"{row}.png" for row in range(len(X))]
SPLIT = FeatureSplit(X, torch.arange(len(X)) % len(CLASSES), NAMES)
IMAGES = ImageArray(np.zeros((len(X), 2, 2, 3), np.uint8), NAMES)


def unsigned(path: Path) -> None:
    """Write a file of tensors as it was before files carried checksums: whatever is damaged in it is read."""
    tensors, about = read_tensors(path)
    safetensors.torch.save_file(tensors, path, {} if about is None else {"cbm": json.dumps(about)})


def save_folder(root: Path) -> None:
    """What ``model.save`` writes, every file of it without a checksum."""
    cbm.load(write_run(root / "run")).save(root / "m")
    shutil.rmtree(root / "run")
    for file in ("model.safetensors", "bank/embeddings.safetensors", "source_card.safetensors"):
        unsigned(root / "m" / file)


def use_folder(root: Path) -> None:
    model = cbm.load(root / "m", device="cpu")
    x = torch.randn(3, model.dim, generator=torch.Generator().manual_seed(0))
    said = model.predict_features(x)
    assert said.logits.shape == (3, len(model.classes))
    assert said.logits.isfinite().all()
    assert len(said.labels) == 3
    with suppress(UserError):
        assert said.contributions().isfinite().all()
        assert all(isinstance(text, str) for text, _ in said.explain(0))
    [str(change) for change in model.changes]
    with suppress(UserError):
        model.cut_points(root / "cache")
    float(model.logit_scale)
    with suppress(UserError):
        load_source_card(root / "m" / "source_card.safetensors")
    again = root / "again"
    if not again.exists():
        model.save(again)
        cbm.load(again)
        shutil.rmtree(again)


def save_saved_model(root: Path) -> None:
    model, _ = bottleneck(TopK(torch.zeros(len(BANK)), 3))
    save_model(model, root / "model.safetensors")
    unsigned(root / "model.safetensors")


def use_model(root: Path) -> None:
    model = load_model(root / "model.safetensors")
    width = model.concepts.shape[1]
    assert model(torch.nn.functional.normalize(torch.ones(2, width), dim=1)).shape[0] == 2
    assert not any(tensor.isnan().any() for tensor in model.state_dict().values() if tensor.is_floating_point())


def save_unsigned(root: Path) -> None:
    save_heads([SparseHead(5, 5.0, 0.1, 0.0, 0.0, 0, torch.eye(2, 3), torch.zeros(2))], root / "n")
    Gate(torch.ones(4).double(), 0.5, 0.05).save(root / "g")
    SourceCard(torch.ones(4, 3), torch.tensor([0, 0, 1, 1])).save(root / "s")
    concepts = (Concept("red belly", ("crow",), "belly", 0.5, {"source": "x"}), Concept("long tail", ("crow", "owl")))
    ConceptBank("b", "s", concepts, "encoder", torch.eye(2, 4)).save(root / "b")
    for file in ("n", "g", "s", "b/embeddings.safetensors"):
        unsigned(root / file)


def use_unsigned(root: Path) -> None:
    for head in load_heads(root / "n"):
        assert head.weight.isfinite().all()
        assert len(head.weight) == len(head.bias)
    gate = load_gate(root / "g")
    assert gate(torch.ones(3, len(gate.direction))).shape == (3,)
    card = load_source_card(root / "s")
    assert card.x.isfinite().all()
    assert len(card.x) == len(card.y)
    assert load_bank(root / "b").embeddings is not None


# ------------------------------------------------------------------------------------------------ tables and answers

FACTS = {"version": 1, "model": "m", "encoder": "e", "device": "cpu", "batch_size": 2,
         "columns": ["path", "class", "probability", "error"], "place": "/", "images": 6, "names": "n"}  # fmt: skip
LISTED = ["a.png", "b, c.png", 'd"e.png', "f\ng.png", "h.png", "i.png"]


def begin_table(root: Path) -> None:
    (root / "list").mkdir()
    with unfinished_table(root / "p.csv") as unfinished:
        take_up(unfinished, FACTS, NameList(LISTED, root / "list"))
        unfinished.add([[name, "ant", "0.5", ""] for name in LISTED[:3]] + [[LISTED[3], "", "", "it is broken"]])


def go_on(root: Path) -> None:
    names = NameList(LISTED, root / "list")
    with unfinished_table(root / "p.csv") as unfinished:
        kept = take_up(unfinished, FACTS, names)
        assert 0 <= kept.failed <= kept.rows <= len(LISTED)
        unfinished.add([[name, "ant", "0.5", ""] for name in LISTED[kept.rows :]])
        content = unfinished.path.read_bytes()
    rows = list(csv.reader(io.StringIO(content.decode(), newline="")))
    assert len(rows) == len(LISTED) + 1


def answer_some(root: Path) -> None:
    queue = PairQueue(root / "labels.csv", MODEL, BANK, SPLIT, IMAGES, CLASSES, who="me")
    for shown in (True, False, None):
        pair = queue.next()
        assert pair is not None
        queue.answer(pair, shown)


def ask_on(root: Path) -> None:
    before = (root / "labels.csv").read_bytes(), (root / "labels.json").read_bytes()
    try:
        queue = PairQueue(root / "labels.csv", MODEL, BANK, SPLIT, IMAGES, CLASSES)
        count, pair = len(queue.answers), queue.next()
        assert pair is not None
        queue.answer(pair, True)
        assert len(queue.answers) == count + 1
        assert queue.undo() is not None
        str(queue.precision)
    finally:
        (root / "labels.csv").write_bytes(before[0])
        (root / "labels.json").write_bytes(before[1])


REQUEST = Request("model", "be brief", "what has a crow?", "concepts")
ANSWER = Answer((Item("black wings"),), "ok", '{"concepts": ["black wings"]}', "model", "2026-01-01", "h",
                10, 5)  # fmt: skip


def keep_answer(root: Path) -> None:
    AnswerCache(root / "answers").put(REQUEST, ANSWER)
    AnswerCache(root / "answers").file(REQUEST).rename(root / "kept.json")


def get_answer(root: Path) -> None:
    file = AnswerCache(root / "answers").file(REQUEST)
    file.write_bytes((root / "kept.json").read_bytes())
    found = AnswerCache(root / "answers").get(REQUEST)
    assert found is None or (isinstance(found, Answer) and asdict(found))
    if found is not None:
        AnswerCache(root / "answers").put(REQUEST, found)


def body(root: Path) -> None:
    """A body of a server as it is, and as something compressed: an answer, or one of two errors."""
    content = (root / "body.json").read_bytes()

    async def chunks():
        for start in range(0, len(content), 100):
            yield content[start : start + 100]

    for encoding in ("", "gzip", "deflate", "gzip, deflate", "br"):
        try:
            plain = asyncio.run(read_body(chunks(), encoding))
            found = read_completion(parse_body(plain, lambda text: text.replace("secret", "")))
            assert isinstance(found.text, str)
            assert found.prompt_tokens >= 0
        except (BodyError, BrokenBody):
            continue


COMPLETION = {
    "model": "m", "created": 1_700_000_000, "usage": {"prompt_tokens": 3, "completion_tokens": 4},
    "choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "black wings", "refusal": None}}],
}  # fmt: skip


def former(root: Path) -> None:
    name = f"{hashlib.sha256(f'm|{PROMPT}'.encode()).hexdigest()[:12]}.jsonl"
    (root / name).write_bytes((root / "kept.jsonl").read_bytes())
    found = _former_answers(root, "m")
    assert all(isinstance(value, float) for value in found.values())


def settings_of(root: Path) -> None:
    content = read_json(root / "open_clip_config.json")
    config = content.get("model_cfg") if isinstance(content, dict) else None
    check_settings(config, "theirs")


# -------------------------------------------------------------------------------------------------------- the stores


class Reader:
    """An encoder of phrases and images that needs no weights."""

    id = fingerprint = "reader"
    dim, least, precision, device = 4, None, "fp32", torch.device("cpu")

    def encode_text(self, texts: list[str], **_) -> torch.Tensor:
        return torch.stack([torch.full((4,), 1.0 + len(text)) for text in texts])

    @staticmethod
    def preprocess(shown: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.asarray(shown.resize((2, 2)))).float()


def signed(file: Path) -> None:
    """Give a damaged shard the checksum of what is in it: somebody has made it so."""
    content = file.read_bytes()
    if len(content) > CHECKSUM:
        left = content[:-CHECKSUM]
        file.write_bytes(left + hashlib.blake2b(left, digest_size=CHECKSUM).digest())


WORDS = ["red", "blue", "green"]


def write_texts(root: Path) -> None:
    TextStore(root).encode(Reader(), WORDS)
    (shard,) = find_shards(root / "text" / "reader").values()
    shard.rename(root / "kept.safetensors")


def read_texts(root: Path, sign: bool) -> None:
    file = root / "text" / "reader" / "0123456789abcdef.safetensors"
    for other in file.parent.iterdir():
        other.unlink()
    file.write_bytes((root / "kept.safetensors").read_bytes())
    if sign:
        signed(file)
    found = TextStore(root).encode(Reader(), [*WORDS, "grey"], progress=False)
    assert found.shape == (4, 4)


def write_words(root: Path) -> None:
    VocabularyStore(root).encode(Reader(), WORDS, progress=False)
    (shard,) = (root / "vocabulary" / "reader").rglob("0*.safetensors")
    (root / "kept.safetensors").write_bytes(shard.read_bytes())


def read_words(root: Path, sign: bool) -> None:
    for shard in (root / "vocabulary" / "reader").rglob("0*.safetensors"):
        shard.write_bytes((root / "kept.safetensors").read_bytes())
        if sign:
            signed(shard)
    found = VocabularyStore(root).encode(Reader(), WORDS, progress=False)
    assert [part.shape for part in found.parts()] == [(3, 4)]


DIGESTS = np.arange(8, dtype=np.uint64).reshape(4, 2) + 1
STORE = Path("features") / "abc-fp32-float32"


def index_of(root: Path) -> FeatureIndex:
    return FeatureIndex(root / STORE, OldStores(root / "features", ("abc", "fp32", "float32"), ["a"]))


def write_store(root: Path) -> None:
    index = index_of(root)
    index.add(DIGESTS, {"features": torch.ones(4, 4), "readable": torch.ones(4, dtype=torch.uint8)}, {})
    index.refresh()
    index.save()
    tree(**{"a.png": picture()})(root)
    for name in ("000000.safetensors", "index.safetensors"):
        (root / name).write_bytes((root / STORE / name).read_bytes())


def read_store(root: Path, sign: bool) -> None:
    for file in (root / STORE).iterdir():
        file.unlink()
    for name in ("000000.safetensors", "index.safetensors"):
        (root / STORE / name).write_bytes((root / name).read_bytes())
        if sign:
            signed(root / STORE / name)
    index = index_of(root)
    found = _look_up(index, DIGESTS, ["a", "b", "c", "d"], torch.zeros(1, 4))
    assert found.tensor(np.arange(4)).shape == (4, 4)
    index.add(DIGESTS, {"features": torch.ones(4, 4), "readable": torch.ones(4, dtype=torch.uint8)}, {})
    index.save()
    read_cache(root)


def write_cache(root: Path) -> None:
    write_shard(root / "text" / "abcdef", "0123456789abcdef", {"features": torch.ones(3, 4)}, {"texts": WORDS})
    tree(**{f"{STORE}/about.json": json.dumps({"encoder": "r", "encoder_fingerprint": "abc", "precision": "fp32",
                                               "dtype": "float32", "dim": 4})})(root)  # fmt: skip
    write_new_shard(root / STORE, "000000", {"features": torch.ones(2, 3)}, {"errors": {}})
    tree(**{"splits/d-0123456789ab.json": json.dumps({"a.png": "val"})})(root)


def list_cache(root: Path) -> None:
    for entry in read_cache(root):
        assert entry.size >= 0
        assert entry.count is None or entry.count >= 0


OLD = "acf19c39ffb371eb65a29769"


def copy_old_store(root: Path) -> None:
    """A store as it was written by f47ba49."""
    shutil.copytree(PROJECT / "tests" / "fixtures" / "store_f47ba49" / "features", root / "features")


def read_old_store(root: Path) -> None:
    about = json.loads((PROJECT / "tests/fixtures/store_f47ba49/features" / OLD / "about.json").read_text())
    address = about["encoder_fingerprint"], "fp32", about["dtype"]
    index = FeatureIndex(root / "features" / "-".join(address), OldStores(root / "features", address, ["a"]))
    shards, rows = index.find(DIGESTS)
    assert len(shards) == len(rows) == len(DIGESTS)


RUNS: dict[str, Readable] = {
    "model folder": Readable(save_folder, use_folder, tuple(
        f"m/{name}" for name in ("config.yaml", "about.json", "metrics.json", "model.safetensors", "bank/bank.json",
                                 "bank/embeddings.safetensors", "source_card.safetensors"))),
    "model, unsigned": Readable(save_saved_model, use_model, ("model.safetensors",)),
    "tensors, unsigned": Readable(save_unsigned, use_unsigned, ("n", "g", "s", "b/embeddings.safetensors")),
    "unfinished table": Readable(begin_table, lambda root: again(root, go_on), ("p.csv.partial", "p.csv.partial.json")),
    "answers of people": Readable(answer_some, ask_on, ("labels.csv", "labels.json")),
    "kept answer": Readable(keep_answer, get_answer, ("kept.json",)),
    "kept answers, former": Readable(
        tree(**{"kept.jsonl": '{"picture": "a", "concept": "red", "answer": "yes"}\n' * 2}), former, ("kept.jsonl",)),
    "body of a server": Readable(tree(**{"body.json": json.dumps(COMPLETION)}), body, ("body.json",)),
    "settings of an encoder": Readable(
        lambda root: (root / "open_clip_config.json").write_bytes(
            (PACKAGE / "encoders" / "tiny_clip" / "open_clip_config.json").read_bytes()),
        settings_of, ("open_clip_config.json",)),
    **{
        f"{name}{', signed' * sign}": Readable(write, lambda root, read=read, sign=sign: read(root, sign), files)
        for sign in (False, True)
        for name, write, read, files in (
            ("features of texts", write_texts, read_texts, ("kept.safetensors",)),
            ("features of a vocabulary", write_words, read_words, ("kept.safetensors",)),
            ("store", write_store, read_store, ("000000.safetensors", "index.safetensors")),
        )
    },
    "old store": Readable(copy_old_store, read_old_store, (f"features/{OLD}/about.json",
                                                           f"features/{OLD}/index.parquet")),
    "names of classes": Readable(
        tree(**{"names.txt": "cat\n\ndog\n"}), lambda root: _class_names(None, None, root / "names.txt", root),
        ("names.txt",)),
    "cache": Readable(write_cache, list_cache, (f"{STORE}/about.json", f"{STORE}/000000.safetensors",
                                                "splits/d-0123456789ab.json")),
}  # fmt: skip


def again(root: Path, go_on) -> None:
    """Go on with a table, and leave it as it was: the next one begins from the same."""
    files = [root / "p.csv.partial", root / "p.csv.partial.json"]
    before = [file.read_bytes() for file in files]
    try:
        go_on(root)
    finally:
        for file, content in zip(files, before):
            file.write_bytes(content)
