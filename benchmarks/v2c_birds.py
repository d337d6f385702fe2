"""Does V2C recover the attributes in which species differ? Paper birds, where the truth about every picture is known.

    python benchmarks/v2c_birds.py [overrides as for train.py]

Vocabularies, each with plain and centred cosines, and with its true names and the names dealt out anew:

* ``drawing``: the 64 phrases of the drawing alone;
* ``general``: the phrases and 436 general visual concepts (``concepts/general.txt``);
* ``words``: the phrases and 20,000 pairs drawn at random from the installable vocabulary;
* ``words only``: the 20,000 pairs alone.

The codebook never sees a label but 16 pictures per species that say what the species looks like. Truth: phrases of the
drawing that more than half of a species' training pictures show and fewer than half of the species do. Prints a
markdown table and writes a JSON line for every row to ``benchmarks/results/v2c_birds.jsonl``.
"""

import json
import random
import sys
from itertools import product
from pathlib import Path
from typing import Any

import hydra
import torch

from cbm import config
from cbm.concepts.cav import majority_owners
from cbm.concepts.codebook import CodebookSettings, learn_codebook, picture_prototypes
from cbm.concepts.prepare import prepare_bank
from cbm.concepts.readers import read_bank
from cbm.concepts.vocabulary import build_vocabulary
from cbm.data.encoded import Encoding, encode_splits, read_images
from cbm.data.text_store import text_encoder
from cbm.data.vocabulary_store import EmbeddedVocabulary, VocabularyStore
from cbm.encoders import load_encoder
from cbm.files.console import set_up_logging
from cbm.methods import create_method, fit_method

RESULTS = Path(__file__).parent / "results" / "v2c_birds.jsonl"
CHOICES = {
    "centred": CodebookSettings(pictures=100, k=10, per_class=50, min_count=None),
    "plain cosine": CodebookSettings(pictures=100, k=10, per_class=50, min_count=None, centred=False),
}
COLUMNS = ("vocabulary", "phrases", "nearest by", "names", "precision", "recall", "base rate", "said", "concepts",
           "accuracy")  # fmt: skip


def main(overrides: list[str]) -> None:
    """Measure every vocabulary."""
    config.register()
    with hydra.initialize_config_dir(str(config.CONFIGS), version_base="1.3"):
        cfg = hydra.compose("train", ["method=v2c", "dataset=birds", "trainer.progress=false", *overrides])
        config.choose_encoder(cfg)
    set_up_logging()
    images = read_images(cfg.dataset, Path(cfg.cache))
    encoder = load_encoder(cfg.encoder)
    _, data = encode_splits(images, encoder, Encoding.of(cfg), ("train", "val", "test"))
    encode_text = text_encoder(encoder, Path(cfg.cache), False)
    assert data.train.concepts is not None
    shown = majority_owners(data.train.concepts, data.train.y, len(data.classes))
    truth = shown & (shown.float().mean(dim=0) < 0.5)
    prototypes = picture_prototypes(data.train, 16, 0, data.classes)

    drawn = list(data.concept_names)
    words = [text for text in build_vocabulary(config.BANKS / "visual_words.yaml").texts if " " in text]
    pairs = random.Random(0).sample(sorted(set(words) - set(drawn)), 20_000)
    vocabularies = {
        "drawing": sorted(drawn),
        "general": sorted({*drawn, *read_bank(config.BANKS / "general.txt").texts}),
        "words": sorted({*drawn, *pairs}),
        "words only": sorted(pairs),
    }
    lines: list[dict[str, Any]] = []
    for name, texts in vocabularies.items():
        embedded = VocabularyStore(Path(cfg.cache)).encode(encoder, texts, progress=False)
        for (choice, settings), names in product(CHOICES.items(), ("true", "shuffled")):
            order = list(texts)
            if names == "shuffled":
                random.Random(1).shuffle(order)
            named = EmbeddedVocabulary(order, embedded.shards)
            book = learn_codebook(data.classes, prototypes, data.train.x, named, name, settings)
            column = {text: k for k, text in enumerate(drawn)}
            said = torch.zeros_like(truth)
            for concept in book.bank.concepts:
                for owner in concept.classes if concept.text in column else ():
                    said[data.classes.index(owner), column[concept.text]] = True
            right = int((said & truth).sum())
            line: dict[str, Any] = {
                "vocabulary": name, "phrases": len(texts), "nearest by": choice, "names": names,
                "precision": right / max(1, int(said.sum())), "recall": right / int(truth.sum()),
                "base rate": float(truth.float().mean()), "said": int(said.sum()), "concepts": len(book.bank),
            }  # fmt: skip
            if names == "true":
                bank = prepare_bank(
                    book.bank, data.classes, encode_text, encoder.fingerprint, hygiene=False, max_words=20,
                    remove_class_names="none",
                )  # fmt: skip
                model, _ = fit_method(
                    create_method(cfg.method), data, bank, encoder.logit_scale, seed=cfg.seed, trainer=cfg.trainer
                )
                line["accuracy"] = float((model(data.test.x).argmax(dim=1) == data.test.y).float().mean())
            lines.append(line)
    RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines))
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + " --- |" * 4 + " ---: |" * (len(COLUMNS) - 4))
    for line in lines:
        cells = [f"{line[c]:.3f}" if isinstance(line.get(c), float) else str(line.get(c, "")) for c in COLUMNS]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
