"""Every method on features of a real CLIP ViT-B/32 that others have published, and words against random directions.

    python benchmarks/real_clip.py run --clip FOLDER [--reader local-dir:PATH]   # a text encoder that reads names
    python benchmarks/real_clip.py table

FOLDER has food10.npz, cifar10_500.npz and vocabulary.npz. Without ``--reader`` what the names are worth is left out.
``run`` appends a JSON line for each fit to ``benchmarks/results/real_clip.jsonl`` (lines that are there are not fitted
again): which test images were decided right, so that every interval is over images. ``table`` prints the tables of
``docs/results_clip.md``.
"""

import argparse
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clip_names
import hydra
import numpy as np
import torch
from decisions import Rows, pack, shown, unpack
from torch import Tensor

from cbm import config
from cbm.concepts import ConceptBank
from cbm.data import FeatureData
from cbm.encoders.base import LOGIT_SCALE
from cbm.files.console import set_up_logging
from cbm.kernels import class_logits, class_vectors
from cbm.layers import predict_logits
from cbm.methods import Method, create_method, fit_method
from cbm.run.train import Clock, encode, gather, read_training_images
from cbm.solvers import LinearScores, elastic_net_path

ROWS = Rows(Path(__file__).parent / "results" / "real_clip.jsonl", ("set", "split", "what", "shots", "seed"))

NAMES = {
    "apple_pie": "pie", "french_fries": "French Fries", "guacamole": "guacamole", "hamburger": "hamburger",
    "ice_cream": "icecream", "omelette": "omelet", "pizza": "pizza", "sushi": "sushi", "tacos": "taco",
    "airplane": "airplane", "automobile": "car_(automobile)", "bird": "bird", "cat": "cat", "deer": "deer",
    "dog": "dog", "frog": "frog", "horse": "horse", "ship": "Ship", "truck": "Truck",
}  # fmt: skip
"""The name of each class in the vocabulary; paella has none, so its images are left out."""
GIVEAWAY = {
    "food": "apple pie french fries guacamole hamburger ice cream icecream omelette omelet pizza sushi tacos taco "
    "burger cheeseburger",
    "cifar": "airplane plane automobile car bird cat deer dog frog horse ship truck",
}
"""Words of class names: a concept that has one of them is left out."""
METHODS: dict[str, list[str]] = {
    "zero_shot": ["method=zero_shot"],
    "cms": ["method=cms"],
    "linear_probe": ["method=linear_probe"],
    "labo": ["method=labo"],
    "v2c": ["method=v2c"],
    "posthoc": ["method=posthoc"],
    "posthoc, residual": ["method=posthoc", "method.residual=true"],
    "label_free": ["method=label_free"],
    "sparse, gumbel": ["method=sparse", "method.objective=gumbel"],
    "sparse, l1": ["method=sparse", "method.objective=l1"],
    "sparse, contrastive": ["method=sparse", "method.objective=contrastive"],
}
UNTRAINED = ("zero_shot", "cms")
SHOTS = (1, 4, 16, "all")
COUNTS = (5, 10, 20)
DRAWS = 20
SPLITS = 5
SLOW = 2
"""Divisions in which the K x K layers of ``sparse`` are trained: a fit takes minutes."""
SEEDS = 3


def prepare(clip: Path, folder: Path) -> dict[str, list[Path]]:
    """Write the sets, the words and the class names as files that ``dataset=features`` reads.

    Args:
        clip: folder of the published features.
        folder: folder to write to.

    Returns:
        The files of the divisions of each set.
    """
    vocabulary = np.load(clip / "vocabulary.npz")
    known = {str(name): vector for key in ("imagenet", "o365", "lvis")
             for name, vector in zip(vocabulary[f"{key}_names"], vocabulary[key])}  # fmt: skip
    vectors = np.stack([known[name] for name in NAMES.values()])
    np.savez(folder / "classes.npz", names=np.array(list(NAMES)), vectors=vectors)
    for name, words in GIVEAWAY.items():
        parts = [
            set(str(word).lower().replace("(", "").replace(")", "").split("_")) for word in vocabulary["lvis_names"]
        ]
        kept = [row for row, part in enumerate(parts) if not part & set(words.split())]
        np.savez(folder / f"{name}_words.npz", names=vocabulary["lvis_names"][kept], vectors=vocabulary["lvis"][kept])
    food, found = np.load(clip / "food10.npz"), {}
    named = [row for row, name in enumerate(food["classes"]) if str(name) in NAMES]
    arrays = {}
    for split in ("train", "test"):
        kept = np.isin(food[f"y_{split}"], named)
        arrays |= {f"X_{split}": food[f"X_{split}"][kept], f"y_{split}": food["classes"][food[f"y_{split}"][kept]]}
    np.savez(folder / "food.npz", **arrays)
    found["food"] = [folder / "food.npz"]
    cifar, found["cifar"] = np.load(clip / "cifar10_500.npz"), []
    for seed in range(SPLITS):
        generator = np.random.default_rng(seed)
        rows = {"train": [], "test": []}
        for label in range(10):
            order = generator.permutation(np.flatnonzero(cifar["y"] == label))
            rows["train"] += order[:25].tolist()
            rows["test"] += order[25:50].tolist()
        arrays = {}
        for split, chosen in rows.items():
            arrays |= {f"X_{split}": cifar["X"][chosen], f"y_{split}": cifar["classes"][cifar["y"][chosen]]}
        np.savez(folder / f"cifar{seed}.npz", **arrays)
        found["cifar"].append(folder / f"cifar{seed}.npz")
    return found


def compose(name: str, file: Path, seed: int, shots: Any, more: list[str]) -> Any:
    """The configuration of one fit, as ``train.py`` would have it."""
    share = 0.1 if name == "food" else 0.2
    settings = [
        "dataset=features", f"dataset.root={file}", f"dataset.val_fraction={share}", f"seed={seed}", f"shots={shots}",
        f"concepts={file.parent / f'{name}_words.npz'}".replace("concepts=", "concepts.source="),
        f"concepts.class_embeddings={file.parent / 'classes.npz'}", f"cache={file.parent / 'cache'}",
        "trainer.progress=false", *more,
    ]  # fmt: skip
    with hydra.initialize_config_dir(str(config.CONFIGS), version_base="1.3"):
        cfg = hydra.compose("train", settings)
    config.choose_encoder(cfg)
    return cfg


def inputs_of(cfg: Any) -> tuple[Method, FeatureData, ConceptBank | None, float]:
    """The method, the data, the concepts and the factor on cosines."""
    method, clock = create_method(cfg.method), Clock()
    inputs = gather(method, cfg, read_training_images(cfg), clock)
    _, data, candidates = encode(method, cfg, inputs, clock)
    return method, data, candidates, inputs.logit_scale


def train(cfg: Any) -> tuple[Any, ConceptBank | None, FeatureData]:
    """The trained model, its concepts and the data."""
    method, data, candidates, scale = inputs_of(cfg)
    return *fit_method(method, data, candidates, scale, seed=cfg.seed, trainer=cfg.trainer), data


def fit(cfg: Any) -> tuple[Tensor, FeatureData]:
    """Which test images the method decides right ``[N]``, and the data."""
    model, _, data = train(cfg)
    return predict_logits(model, data.test.x).argmax(1) == data.test.y, data


def directions(kind: str, words: Tensor, draw: int) -> Tensor:
    """Unit directions ``[K, D]``: the words, isotropic ones, or Gaussian ones with the covariance of the words."""
    if kind == "words":
        return words
    generator = torch.Generator().manual_seed(draw)
    z = torch.randn(words.shape, generator=generator)
    if kind == "covariance":
        dim = words.shape[1]
        z = z @ torch.linalg.cholesky(torch.cov(words.double().T) + 1e-8 * torch.eye(dim).double()).T.float()
    return torch.nn.functional.normalize(z, dim=1)


def sparse_rows(data: FeatureData, kind: str, words: Tensor, draw: int) -> Iterator[dict[str, Any]]:
    """Certified heads with exactly so many of the directions per class."""
    chosen = directions(kind, words, draw)
    scores = LinearScores(data.train.x, chosen)
    path = elastic_net_path(scores, data.train.y, num_classes=len(data.classes), nec=list(COUNTS), n_lambdas=12,
                            lambda_ratio=1 / 2000, tol=1e-3)  # fmt: skip
    for count, point in path.at_nec.items():
        weight, bias = scores.on_raw(point.weight(), point.bias)
        right = class_logits(data.test.x, *class_vectors(chosen, weight, bias=bias)).argmax(1) == data.test.y
        yield {"nec": count, "exact": round(point.nec, 4), "gap": max(point.gap, 0.0), "right": pack(right)}


def run(clip: Path, reader: str | None) -> None:
    """Fit what is not fitted yet."""
    set_up_logging()
    config.register()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        files = [(name, split, file) for name, files in prepare(clip, Path(temporary)).items()
                 for split, file in enumerate(files)]  # fmt: skip
        for name, split, file in files:
            fits(name, split, file, [what for what in METHODS if not what.startswith("sparse")])
            heads(name, split, file)
        for name, split, file in files if reader is not None else ():
            names(name, split, file, reader)
        if reader is not None:
            methods(*files[0], reader)
        else:
            print("what the names are worth is left out: no --reader local-dir:PATH")
        for name, split, file in files:
            if split < SLOW:
                fits(name, split, file, [what for what in METHODS if what.startswith("sparse")])


def fits(name: str, split: int, file: Path, methods: list[str]) -> None:
    """Decisions of some methods at every number of shots."""
    for what in methods:
        for shots in SHOTS:
            for seed in range(SEEDS if name == "food" else 1):
                fixed = what in UNTRAINED and (shots, seed) != ("all", 0)
                if not fixed and (key := (name, split, what, shots, seed)) not in ROWS:
                    ROWS.add(key, right=pack(fit(compose(name, file, seed, shots, METHODS[what]))[0]))


def heads(name: str, split: int, file: Path) -> None:
    """Decisions of heads on words and on random directions."""
    words = torch.from_numpy(np.load(file.parent / f"{name}_words.npz")["vectors"])
    data = None
    for kind in ("words", "isotropic", "covariance"):
        for draw in range(1 if kind == "words" else DRAWS):
            if (key := (name, split, f"{kind} directions", "all", draw)) not in ROWS:
                data = data or fit(compose(name, file, 0, "all", ["method=linear_probe"]))[1]
                ROWS.add(key, heads=list(sparse_rows(data, kind, words, draw)), concepts=len(words))


def names(name: str, split: int, file: Path, reader: str) -> None:
    """What an independent reader makes of the names, and heads that may only use them."""
    case = read_case(name, file, asks(reader))
    for kind in clip_names.KINDS:
        for draw in range(1 if kind == "named" else clip_names.DRAWS[name]):
            if (key := (name, split, f"reader, {kind}", "all", draw)) not in ROWS:
                ROWS.add(key, reads=list(clip_names.reads(case, kind, draw)))
    for shots in SHOTS:
        for seed in range(SEEDS if name == "food" else 1):
            if (name, split, "free head, covariance", shots, seed) not in ROWS:  # the last of them
                data = inputs_of(compose(name, file, seed, shots, ["method=posthoc"]))[1]
                for what, row in clip_names.heads(case, data, seed + split):
                    ROWS.add((name, split, what, shots, seed), **row)


def methods(name: str, split: int, file: Path, reader: str) -> None:
    """Every method with all images, and what an independent reader makes of its concepts."""
    asked = asks(reader)
    case = read_case(name, file, asked)
    for what in clip_names.TIED:
        for kind, draw in itertools.product(("exchanged", "covariance"), range(SEEDS)):
            if (key := (name, split, f"{what}, {kind}", "all", draw)) not in ROWS:
                cfg = compose(name, file, 0, "all", [*clip_names.METHODS[what], *asked])
                model, _ = fit_method(create_method(cfg.method), case.data, case.control(kind, draw), LOGIT_SCALE)
                ROWS.add(key, right=pack(predict_logits(model, case.data.test.x).argmax(1) == case.data.test.y))
    random: dict[int, list[float]] = {}
    for what, settings in (METHODS | clip_names.METHODS).items():
        if what not in clip_names.SLOW and (key := (name, split, f"evidence, {what}", "all", 0)) not in ROWS:
            shots = 1 if what == "zcbm" else "all"  # it learns nothing, and a signed code takes 0.2 s an image
            cfg = compose(name, file, 0, shots, [*settings, *asked])
            model, bank, _ = train(cfg)
            ROWS.add(key, **clip_names.evidence(cfg, model, bank, case.data, random))


def asks(reader: str) -> list[str]:
    """Settings that let a text encoder read the names."""
    return [f"evidence.reader={reader}", f"evidence.prompt='{clip_names.PROMPT}'"]


def read_case(name: str, file: Path, asked: list[str]) -> clip_names.Case:
    """A division with all its images, and its words as the reader understands them."""
    _, data, bank, _ = inputs_of(compose(name, file, 0, "all", ["method=posthoc", *asked]))
    classes = np.load(file.parent / "classes.npz")
    order = [classes["names"].tolist().index(label) for label in data.classes]
    return clip_names.Case(data, bank, torch.from_numpy(classes["vectors"])[order].float())


def accuracy(row: dict[str, Any], count: int) -> float:
    """Share of images that a head with so many directions per class decides right."""
    return float(next(unpack(head["right"]).mean() for head in row["heads"] if head["nec"] == count))


def table() -> None:
    """Print the tables of the page, and how exact the heads are."""
    clip_names.main_table(ROWS, [*METHODS, *clip_names.METHODS])
    clip_names.tied_table(ROWS)
    for name in ("food", "cifar"):
        clip_names.reader_table(ROWS, name)
        clip_names.heads_table(ROWS, name)
    notes: list[str] = []
    for name in ("food", "cifar"):
        print(f"\n### {name}: every method\n\n| method | 1 shot | 4 shots | 16 shots | all |\n|---|---|---|---|---|")
        for what in METHODS:
            cells = []
            for shots in SHOTS:
                found = ROWS.where(set=name, what=what, shots=shots)
                splits = sorted({r["split"] for r in found})
                decided = [[unpack(r["right"]) for r in found if r["split"] == split] for split in splits]
                cells.append(shown(decided) if decided else "–")
            print(f"| {what} | {' | '.join(cells)} |")
        print(f"\n### {name}: exactly so many directions per class, certified\n")
        print(f"| directions | {' | '.join(map(str, COUNTS))} |\n|---|{'---|' * len(COUNTS)}")
        for kind in ("words", "isotropic", "covariance"):
            found = ROWS.where(set=name, what=f"{kind} directions")
            cells = []
            for count in COUNTS:
                splits = sorted({r["split"] for r in found})
                heads = [(r["split"], h["right"]) for r in found for h in r["heads"] if h["nec"] == count]
                decided = [[unpack(right) for split, right in heads if split == each] for each in splits]
                cells.append(shown(decided) if decided else "–")
            gap = max((h["gap"] for r in found for h in r["heads"]), default=0.0)
            few = [
                min((h["exact"] for r in found for h in r["heads"] if h["nec"] == count), default=0) for count in COUNTS
            ]
            fewer = "".join(f"; {low:g} in place of {n} where a path ends" for n, low in zip(COUNTS, few) if low < n)
            print(f"| {kind} | {' | '.join(cells)} |")
            notes.append(f"{name}, {kind}: largest relative duality gap {gap:.1e}{fewer}")
            if kind != "words":
                best = {row["split"]: row for row in ROWS.where(set=name, what="words directions")}
                pairs = [(row, best[row["split"]]) for row in found if row["split"] in best]
                beaten = [
                    f"{sum(accuracy(row, count) >= accuracy(word, count) for row, word in pairs)} of {len(pairs)}"
                    for count in COUNTS
                ]
                print(f"| … draws not below the words | {' | '.join(beaten)} |")
    print("", *notes, *clip_names.notes(ROWS), f"{len(ROWS.rows)} rows", sep="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--clip", type=Path, help="folder of food10.npz, cifar10_500.npz and vocabulary.npz")
    parser.add_argument("--reader", help="text encoder that made none of the features: local-dir:PATH")
    options = parser.parse_args()
    if options.what == "run" and options.clip is None:
        parser.error("run needs --clip FOLDER")
    run(options.clip, options.reader) if options.what == "run" else table()
