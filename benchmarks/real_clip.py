"""Every method on features of a real CLIP ViT-B/32 that others have published, and words against random directions.

    python benchmarks/real_clip.py run --clip FOLDER      # with food10.npz, cifar10_500.npz, vocabulary.npz
    python benchmarks/real_clip.py table

``run`` appends a JSON line for each fit to ``benchmarks/results/real_clip.jsonl`` (lines that are there are not fitted
again): which test images were decided right, so that every interval is over images. ``table`` prints the tables of
``docs/results_clip.md``.
"""

import argparse
import json
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from torch import Tensor

from cbm import config
from cbm.data import FeatureData
from cbm.files.console import set_up_logging
from cbm.kernels import class_logits, class_vectors
from cbm.layers import predict_logits
from cbm.methods import create_method, fit_method
from cbm.run.train import Clock, encode, gather, read_training_images
from cbm.solvers import LinearScores, elastic_net_path

RESULTS = Path(__file__).parent / "results" / "real_clip.jsonl"

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


def fit(cfg: Any) -> tuple[Tensor, FeatureData]:
    """Which test images the method decides right ``[N]``, and the data."""
    method, clock = create_method(cfg.method), Clock()
    inputs = gather(method, cfg, read_training_images(cfg), clock)
    _, data, candidates = encode(method, cfg, inputs, clock)
    model, _ = fit_method(method, data, candidates, inputs.logit_scale, seed=cfg.seed, trainer=cfg.trainer)
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


def pack(right: Tensor) -> str:
    """Zeros and ones as hexadecimal digits, after their number."""
    return f"{len(right)}:{np.packbits(right.numpy()).tobytes().hex()}"


def unpack(text: str) -> np.ndarray:
    """What ``pack`` was given."""
    count, _, digits = text.partition(":")
    return np.unpackbits(np.frombuffer(bytes.fromhex(digits), np.uint8))[: int(count)].astype(float)


def known() -> list[dict[str, Any]]:
    """The lines measured so far."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []


def run(clip: Path) -> None:
    """Fit what is not fitted yet."""
    set_up_logging()
    config.register()
    torch.set_num_threads(1)
    there = {(r["set"], r["split"], r["what"], str(r["shots"]), r["seed"]) for r in known()}
    with tempfile.TemporaryDirectory() as temporary, RESULTS.open("a") as out:

        def write(key: tuple, **values: Any) -> None:
            line = dict(zip(("set", "split", "what", "shots", "seed"), key)) | values
            out.write(json.dumps(line) + "\n")
            out.flush()

        for name, files in prepare(clip, Path(temporary)).items():
            for split, file in enumerate(files):
                for what, more in METHODS.items():
                    for shots in SHOTS:
                        for seed in range(SEEDS if name == "food" else 1):
                            fixed = what in UNTRAINED and (shots, seed) != ("all", 0)
                            key = (name, split, what, shots, seed)
                            if fixed or tuple(map(str, key)) in {tuple(map(str, each)) for each in there}:
                                continue
                            right, _ = fit(compose(name, file, seed, shots, more))
                            write(key, right=pack(right))
                _, data = fit(compose(name, file, 0, "all", ["method=linear_probe"]))
                words = torch.from_numpy(np.load(file.parent / f"{name}_words.npz")["vectors"])
                for kind in ("words", "isotropic", "covariance"):
                    for draw in range(1 if kind == "words" else DRAWS):
                        if (name, split, f"{kind} directions", "all", draw) not in there:
                            rows = list(sparse_rows(data, kind, words, draw))
                            write((name, split, f"{kind} directions", "all", draw), heads=rows, concepts=len(words))


def interval(right: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """95 % of the mean when test images are drawn again; ``right`` ``[draws, N]``: all decisions about an image go
    together."""
    per_image = right.mean(axis=0)
    generator = np.random.default_rng(seed)
    means = per_image[generator.integers(0, len(per_image), (4000, len(per_image)))].mean(axis=1)
    return tuple(np.quantile(means, [0.025, 0.975]))  # type: ignore[return-value]


def shown(values: list[list[np.ndarray]]) -> str:
    """Mean and interval, in per cent, of decisions by division and draw; the deviation over divisions and draws.

    Divisions have other test images: their intervals are joined as those of independent samples, which they are not
    quite, because divisions of one set share images.
    """
    means = [np.mean([right.mean() for right in draws]) for draws in values]
    each = [right.mean() for draws in values for right in draws]
    if len(values) == 1:
        low, high = interval(np.stack(values[0]))
    else:
        spread = np.mean([(np.diff(interval(np.stack(draws)))[0] / 2) for draws in values])
        low, high = np.mean(means) - spread, np.mean(means) + spread
    deviation = f" ± {100 * np.std(each, ddof=1):.1f}" if len(each) > 1 and np.std(each) > 1e-9 else ""
    return f"{100 * np.mean(means):.1f}{deviation} [{100 * low:.1f}, {100 * high:.1f}]"


def table() -> None:
    """Print the tables of the page."""
    rows = known()
    for name in ("food", "cifar"):
        print(f"\n### {name}: every method\n\n| method | 1 shot | 4 shots | 16 shots | all |\n|---|---|---|---|---|")
        for what in METHODS:
            cells = []
            for shots in SHOTS:
                found = [r for r in rows if (r["set"], r["what"], r["shots"]) == (name, what, shots)]
                splits = sorted({r["split"] for r in found})
                decided = [[unpack(r["right"]) for r in found if r["split"] == split] for split in splits]
                cells.append(shown(decided) if decided else "–")
            print(f"| {what} | {' | '.join(cells)} |")
        print(f"\n### {name}: exactly so many directions per class, certified\n")
        print(f"| directions | {' | '.join(map(str, COUNTS))} |\n|---|{'---|' * len(COUNTS)}")
        for kind in ("words", "isotropic", "covariance"):
            found = [r for r in rows if (r["set"], r["what"]) == (name, f"{kind} directions")]
            cells = []
            for count in COUNTS:
                splits = sorted({r["split"] for r in found})
                heads = [(r["split"], h["right"]) for r in found for h in r["heads"] if h["nec"] == count]
                decided = [[unpack(right) for split, right in heads if split == each] for each in splits]
                cells.append(shown(decided) if decided else "–")
            gap = max((h["gap"] for r in found for h in r["heads"]), default=0.0)
            off = max((abs(h["exact"] - h["nec"]) for r in found for h in r["heads"]), default=0.0)
            print(f"| {kind} | {' | '.join(cells)} |   <!-- largest gap {gap:.1e}, off by {off:g} -->")
    print(f"\nrows: {len(rows)}, checksum {zlib.crc32(RESULTS.read_bytes()):08x}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--clip", type=Path, help="folder of food10.npz, cifar10_500.npz and vocabulary.npz")
    options = parser.parse_args()
    if options.what == "run" and options.clip is None:
        parser.error("run needs --clip FOLDER")
    run(options.clip) if options.what == "run" else table()
