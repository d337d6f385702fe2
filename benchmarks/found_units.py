"""Concepts found in features: every dictionary on paper birds, photographs, blood cells and features of CLIP itself.

    python benchmarks/found_units.py run --photos CIFAR --cells WBCATT --encoder local-dir:FOLDER --clip FOLDER
    python benchmarks/found_units.py table
    python benchmarks/found_units.py scale --rows 100000 --dim 512 --units 4096

CIFAR is a folder of photographs with a folder for each class, WBCATT the blood cells of ``dataset=wbcatt``; both are
encoded by ``--encoder``. The last FOLDER has food10.npz and vocabulary.npz (features of CLIP ViT-B/32 that others have
published). What is not given is left out. ``run`` appends a JSON line for each fit to
``benchmarks/results/found_units.jsonl``; lines that are there are not measured again. ``table`` prints the tables of
``docs/results_found.md``. ``scale`` trains one dictionary through Lightning on planted features that are mapped from
disk, and says how long it took, how much memory, and how many of the planted atoms it found.
"""

import argparse
import json
import resource
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from decisions import Rows, pack, unpack
from real_clip import prepare

from cbm import config
from cbm.concepts import ConceptBank
from cbm.data import FeatureData, FeatureSplit
from cbm.files.console import set_up_logging
from cbm.layers import predict_logits
from cbm.layers.autoencoder import Autoencoder
from cbm.losses.autoencoder import autoencoder_loss
from cbm.methods import create_method, fit_method
from cbm.metrics.dictionaries import match_dictionaries
from cbm.metrics.evaluate import evaluate_split
from cbm.metrics.found_units import unit_metrics
from cbm.metrics.reader import read, said_by_owners, strongest_words
from cbm.metrics.truth import auroc_matrix
from cbm.run.train import Clock, encode, gather, read_training_images
from cbm.training import ConceptBottleneckModule, epochs_of
from cbm.training import fit as fit_module

ROWS = Rows(Path(__file__).parent / "results" / "found_units.jsonl", ("set", "dictionary", "seed"))
DICTIONARIES: dict[str, dict[str, Any]] = {
    "topk": {}, "batch_topk": {"dictionary": "batch_topk"}, "jumprelu": {"dictionary": "jumprelu"},
    "relu": {"dictionary": "relu"}, "matryoshka": {"dictionary": "matryoshka"},
    "archetypal": {"dictionary": "archetypal"}, "kmeans": {"dictionary": "kmeans"}, "crops": {"dictionary": "crops"},
    "semi_nmf": {"dictionary": "semi_nmf"}, "random": {"dictionary": "random"},
    "topk, named by pictures": {"naming": {"by": "pictures"}},
    "relu, released": {"dictionary": "relu", "fidelity": "released"},
}  # fmt: skip
SEVERAL = ("topk", "kmeans", "random")
SEEDS = {"birds": 3, "food": 3}
"""Seeds of ``SEVERAL``; one elsewhere."""
ELSEWHERE = ("topk", "batch_topk", "jumprelu", "kmeans", "random", "topk, named by pictures")
"""What is measured on the other sets."""
KEYS = (
    "method/name_too_rare", "method/dead", "method/name_named", "method/name_named_null", "method/name_named_dealt",
    "method/name_cosine",
    "method/name_cosine_null", "method/name_auroc", "method/stability_cosine", "method/stability_cosine_null",
    "method/stability_matched", "method/stability_matched_null", "test/accuracy", "test/accuracy_nec5", "test/code_r2",
    "test/code_l0", "test/code_r2_best", "test/unnamed_share", "test/name_true", "test/name_true_dealt",
    "test/name_labelled", "test/accuracy_l0_5", "test/accuracy_l0_10", "test/accuracy_l0_20",
)  # fmt: skip
TITLES = {"birds": "Paper birds", "food": "Food, CLIP ViT-B/32", "cells": "Blood cells (WBCAtt)",
          "photos": "CIFAR-10 photographs"}  # fmt: skip
HEADINGS = (
    "dictionary", "units (dead)", "R² at L0", "best code", "test accuracy", "5 / 10 / 20 units, ridge",
    "found again (random)", "named (random, dealt) of tested", "named truly (dealt)", "attributes told (.8 or more)",
    "decision unnamed", "CPU s",
)  # fmt: skip


def sets(arguments: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """The settings of every set that is there."""
    encoder = [] if arguments.encoder is None else [f"encoder.model={arguments.encoder}"]
    cache = [] if arguments.cache is None else [f"cache={arguments.cache}"]
    found: dict[str, list[str]] = {"birds": []}
    if arguments.clip:
        prepare(arguments.clip, folder)
        found["food"] = [
            "dataset=features", f"dataset.root={folder / 'food.npz'}", f"concepts.source={folder / 'food_words.npz'}",
            f"cache={folder / 'cache'}",
        ]  # fmt: skip
    if arguments.cells:
        found["cells"] = ["dataset=wbcatt", f"dataset.root={arguments.cells}", *encoder, *cache]
    if arguments.photos:
        found["photos"] = ["dataset=folder", f"dataset.root={arguments.photos}", "concepts=general", *encoder, *cache]
    return found


def inputs(settings: list[str]) -> tuple[FeatureData, ConceptBank | None]:
    """The encoded data and the vocabulary; crops of paper birds, because they take 13 times the encoding."""
    kind = "topk" if settings else "crops"
    more = ["method=discovered", f"method.dictionary={kind}", "trainer.progress=false"]
    with hydra.initialize_config_dir(str(config.CONFIGS), version_base="1.3"):
        cfg = hydra.compose("train", [*more, *settings])
    config.choose_encoder(cfg)
    method = create_method(cfg.method)
    _, data, vocabulary = encode(method, cfg, gather(method, cfg, read_training_images(cfg), Clock()), Clock())
    return data, vocabulary


def labels_of_units(model: Any, data: FeatureData) -> dict[str, float]:
    """Units against the true attributes of the cells, whatever they are called: for every attribute value, the AUROC of
    the unit that tells it best among the training images, on test images."""
    if data.test.concepts is None or data.train.concepts is None:
        return {}
    tables = []
    for split in (data.train, data.test):
        active = torch.cat([model.activations(part) for part in split.x.split(2048)])
        tables.append(auroc_matrix(active, split.concepts)[0])
    known = ~(tables[0].isnan().any(dim=0) | tables[1].isnan().any(dim=0))
    best = tables[0][:, known].argmax(dim=0)
    told = tables[1][:, known][best, torch.arange(int(known.sum()))]
    return {"attributes": int(known.sum()), "attribute_auroc": float(told.mean()),
            "attributes_above_8": float((told >= 0.8).double().mean())}  # fmt: skip


def fit(what: str, settings: dict[str, Any], data: FeatureData, vocabulary: ConceptBank | None, seed: int) -> None:
    """Measure one dictionary on one set."""
    torch.manual_seed(seed)
    method = create_method({"name": "discovered", **settings})
    began = time.process_time()
    own = replace(data, seed=seed)
    trainer = config.TrainerConfig(progress=False)
    model, bank = fit_method(method, own, vocabulary, 100.0, seed=seed, trainer=trainer)
    took = time.process_time() - began
    values = {f"method/{key}": value for key, value in method.facts.items()}
    values |= evaluate_split(model, bank, own, "test") | unit_metrics(model, bank, own, seed=seed)
    row = {key: round(values[key], 4) for key in KEYS if key in values} | labels_of_units(model, own)
    owners = bank.owners(own.classes)
    if owners.any():
        words = strongest_words(model, own.test.x)
        reading = read(words, said_by_owners(owners), own.test.y, "owners", draws=199, seed=seed)
        row |= {"reader": reading.accuracy, "reader_null": reading.null}
    right = predict_logits(model, own.test.x).argmax(1) == own.test.y
    ROWS.add((what, name_of(settings), seed), units=len(bank), cpu_s=round(took, 1), right=pack(right), **row)


def name_of(settings: dict[str, Any]) -> str:
    """The name of a dictionary by its settings."""
    return next(name for name, known in DICTIONARIES.items() if known == settings)


def run(arguments: argparse.Namespace) -> None:
    """Fit what is not fitted yet."""
    set_up_logging()
    config.register()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        for what, settings in sets(arguments, Path(temporary)).items():
            data, vocabulary = inputs(settings)
            for name, chosen in DICTIONARIES.items():
                for seed in range(SEEDS.get(what, 1) if name in SEVERAL else 1):
                    known = (what, name, seed) in ROWS or (what != "birds" and name not in ELSEWHERE)
                    if known or (name == "crops" and data.crops is None):
                        continue
                    fit(what, chosen, data, vocabulary, seed)
                    print(ROWS.rows[-1] | {"right": ""}, flush=True)


def mean(rows: list[dict[str, Any]], key: str) -> float | None:
    """Mean over seeds; None where it was not measured."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return float(np.mean(values)) if values else None


def shown(value: float | None, percent: bool = True) -> str:
    """A cell of a table."""
    return "–" if value is None else f"{100 * value:.1f}" if percent else f"{value:.2f}"


def table() -> None:
    """Print the tables of the page."""
    for what, title in TITLES.items():
        names = [name for name in DICTIONARIES if ROWS.where(set=what, dictionary=name)]
        if not names:
            continue
        print(f"\n### {title}\n")
        print("| " + " | ".join(HEADINGS) + " |")
        print("|---" * len(HEADINGS) + "|")
        for name in names:
            rows = ROWS.where(set=what, dictionary=name)
            of = {key: mean(rows, key) for key in (*KEYS, "units", "cpu_s")}
            accuracy = 100 * float(np.mean([unpack(row["right"]).mean() for row in rows]))
            at = " / ".join(shown(of[f"test/accuracy_l0_{count}"]) for count in (5, 10, 20))
            true = "–"
            if of["test/name_true"] is not None:
                true = f"{shown(of['test/name_true'])} of {of['test/name_labelled']:.0f}"
                true += f" ({shown(of['test/name_true_dealt'])})"
            told = "–"
            if (auroc := mean(rows, "attribute_auroc")) is not None:
                told = f"{auroc:.2f} ({shown(mean(rows, 'attributes_above_8'))} %)"
            tested = None if of["method/name_too_rare"] is None else 1 - of["method/name_too_rare"]
            r2 = "–" if of["test/code_r2"] is None else f"{of['test/code_r2']:.3f} at {of['test/code_l0']:.1f}"
            print(
                f"| {name} | {of['units']:.0f} ({shown(of['method/dead'])} %) | {r2} | "
                f"{shown(of['test/code_r2_best'], percent=False)} | {accuracy:.1f} | {at} | "
                f"{shown(of['method/stability_matched'])} ({shown(of['method/stability_matched_null'])}) | "
                f"{shown(of['method/name_named'])} ({shown(of['method/name_named_null'])}, "
                f"{shown(of['method/name_named_dealt'])}) of {shown(tested)} | {true} | {told} | "
                f"{shown(of['test/unnamed_share'])} | {of['cpu_s']:.0f} |"
            )


def planted(rows: int, dim: int, units: int, few: int, file: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Features ``[N, D]`` in half precision, mapped from a file: sums of a few of ``units`` atoms, around a mean."""
    g = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(units, dim, generator=g), dim=1)
    mean = 0.7 * torch.nn.functional.normalize(torch.randn(dim, generator=g), dim=0)
    out = np.memmap(file, np.float16, "w+", shape=(rows, dim))
    for start in range(0, rows, 8192):
        count = min(8192, rows - start)
        columns = torch.randint(units, (count, few), generator=g)
        weights = (0.5 + torch.rand(count, few, generator=g)) / few**0.5
        said = torch.nn.functional.embedding_bag(columns, atoms, per_sample_weights=weights, mode="sum")
        out[start : start + count] = torch.nn.functional.normalize(mean + 0.7 * said, dim=1).half().numpy()
    out.flush()
    return torch.from_numpy(out), atoms


def step_seconds(model: Autoencoder, x: torch.Tensor, dense: bool) -> float:
    """CPU seconds of a training step without the optimizer: of the objective as it is, or by dense codes."""
    model.zero_grad()
    began = time.process_time()
    if dense:
        away = model.away(x)
        scores = model.scores(away)
        values, units = scores.topk(model.k, dim=1)
        codes = torch.zeros_like(scores).scatter(1, units, values.relu())
        loss = (away - codes @ model.atoms() - model.bias).square().sum(dim=1).mean()
    else:
        loss = autoencoder_loss(model, x, dead_after=10**12)
    loss.backward()
    return time.process_time() - began


def scale(arguments: argparse.Namespace) -> None:
    """Train one dictionary on many rows."""
    set_up_logging()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        x, atoms = planted(arguments.rows, arguments.dim, arguments.units, 8, Path(folder) / "x.bin")
        y = torch.arange(len(x)) % 10
        held = slice(0, 2000)
        splits = {"train": FeatureSplit(x, y, []), "val": FeatureSplit(x[held].float(), y[held], [])}
        data = FeatureData(splits, [str(c) for c in range(10)])
        settings = {"size": arguments.units, "seeds": 1, "k": arguments.k} | (
            {} if arguments.passes is None else {"passes": arguments.passes}
        )
        method = create_method({"name": "discovered", **settings})
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began, cpu = time.perf_counter(), time.process_time()
        built = method.build(data, None, 100.0)
        module = ConceptBottleneckModule(built.model, method.optimizer, method.loss, method.validate)
        epochs = epochs_of(built.passes or 1, len(x), built.batch_size)
        fit_module(module, data, batch_size=built.batch_size, patience=epochs, max_epochs=epochs,
                   trainer={"accelerator": "cpu", "devices": 1})  # fmt: skip
        took, used = time.perf_counter() - began, time.process_time() - cpu
        first = next(iter(built.model))
        found = match_dictionaries(atoms, first.atoms().detach())
        timed = first.train()
        timed.step.fill_(timed.settle)
        pairs = [[step_seconds(timed, x[:2048], dense) for dense in (False, True)] for _ in range(5)]
        row = {
            "rows": len(x), "dim": arguments.dim, "units": arguments.units, "k": arguments.k, "steps": method.steps,
            "seconds": round(took, 1), "cpu_s": round(used, 1), "cpu_s_per_step": round(used / method.steps, 4),
            "memory_mb_before": before // 1024,
            "memory_mb_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "features_mb": x.numel() * 2 // 2**20, "unexplained": round(module.best["loss"], 4),
            "sparse_over_dense": round(float(np.median([a / b for a, b in pairs])), 3),
            "planted_matched": round(float((found.cosine > 0.95).double().mean()), 4),
        }  # fmt: skip
        print(row)
        (Path(__file__).parent / "results" / "found_units_scale.json").write_text(json.dumps(row, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table", "scale"))
    for option in ("photos", "cells", "clip", "cache"):
        parser.add_argument(f"--{option}", type=Path)
    parser.add_argument("--encoder")
    for option, value in (("rows", 100_000), ("dim", 512), ("units", 4096), ("k", 16), ("passes", None)):
        parser.add_argument(f"--{option}", type=int, default=value)
    given = parser.parse_args()
    {"run": run, "scale": scale, "table": lambda _: table()}[given.command](given)
