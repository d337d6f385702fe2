"""What a learned bottleneck layer is worth: every objective, and layers that are not learned, at equal k.

    python benchmarks/sparse_ablation.py run birds
    python benchmarks/sparse_ablation.py run cifar10 dataset=folder dataset.root=cifar10 encoder.model=...
    python benchmarks/sparse_ablation.py table
    python benchmarks/sparse_ablation.py plot

``run NAME [overrides as for train.py]`` reads the pictures once, fits every variant, and appends a JSON line for each
to ``benchmarks/results/sparse_ablation.jsonl`` (lines that are there are not fitted again). ``table`` prints the table
at k = 5 over three seeds, ``plot`` draws accuracy and names kept against k (needs matplotlib).
"""

import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import torch

from cbm import config
from cbm.concepts.candidates import candidate_bank
from cbm.data.encoded import Encoding, encode_splits, read_images
from cbm.data.text_store import text_encoder
from cbm.encoders import load_encoder
from cbm.files.console import set_up_logging
from cbm.methods import create_method, fit_method
from cbm.metrics.evaluate import evaluate_split

RESULTS = Path(__file__).parent / "results" / "sparse_ablation.jsonl"
FIGURE = Path(__file__).parents[1] / "docs" / "images" / "sparse_ablation.png"

VARIANTS: dict[str, dict[str, Any]] = {
    "W = identity": {"mixing": "identity", "objective": "none"},
    "W random, frozen": {"mixing": "random", "objective": "none"},
    "cross-entropy only": {"objective": "none"},
    "l1": {"objective": "l1"},
    "contrastive": {"objective": "contrastive"},
    "similarity x 1": {"objective": "similarity", "weight": 1.0},
    "similarity x 10": {"objective": "similarity", "weight": 10.0},
    "gumbel x 1": {"objective": "gumbel", "weight": 1.0},
    "gumbel x 10": {"objective": "gumbel", "weight": 10.0},
    "cross-entropy only (paper's start)": {"objective": "none", "fidelity": "paper"},
    "l1 (paper)": {"objective": "l1", "fidelity": "paper"},
    "contrastive (paper)": {"objective": "contrastive", "fidelity": "paper"},
    "gumbel (paper)": {"objective": "gumbel", "fidelity": "paper"},
    "gumbel (released)": {"objective": "gumbel", "fidelity": "released"},
}
KEYS = ("accuracy", "concept_accuracy", "concept_auroc", "self_rank", "alignment", "used_concept_precision", "image_l0",
        "image_participation")  # fmt: skip
GRID = [(5, seed) for seed in (0, 1, 2)] + [(k, 0) for k in (1, 3, 10, 20, "all")]


def known() -> list[dict[str, Any]]:
    """The lines measured so far."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []


def run(name: str, overrides: list[str]) -> None:
    """Fit every variant on one data set."""
    config.register()
    set_up_logging()
    with hydra.initialize_config_dir(str(config.CONFIGS), version_base="1.3"):
        cfg = hydra.compose("train", overrides=["method=sparse", "trainer.progress=false", *overrides])
        config.choose_encoder(cfg)
    method = create_method(cfg.method)
    dataset = read_images(cfg.dataset, Path(cfg.cache))
    encoder = load_encoder(cfg.encoder)
    encode_text = text_encoder(encoder, Path(cfg.cache), False)
    bank = candidate_bank(method.concepts_from, cfg, dataset, encoder, encode_text)
    _, data = encode_splits(dataset, encoder, Encoding.of(cfg), ("train", "val", "test"))
    done = {(line["data"], line["variant"], line["k"], line["seed"]) for line in known()}
    for k, seed in GRID:
        for variant, settings in VARIANTS.items():
            if (name, variant, k, seed) in done or (
                k == "all" and settings["objective"] == "gumbel" and "fidelity" not in settings
            ):
                continue
            data = replace(data, seed=seed)
            method = create_method({"name": "sparse", "k": k, **settings})
            began = time.perf_counter()
            model, used = fit_method(method, data, bank, encoder.logit_scale, seed=seed, trainer=cfg.trainer)
            seconds = time.perf_counter() - began
            metrics = evaluate_split(model, used, data, "test")
            line = {"data": name, "variant": variant, "k": k, "seed": seed, "concepts": len(used or ())}
            line |= {key: round(metrics[f"test/{key}"], 5) for key in KEYS if f"test/{key}" in metrics}
            with RESULTS.open("a") as file:
                file.write(json.dumps(line | {"fit_s": round(seconds, 1), "torch": torch.__version__}) + "\n")


def table() -> None:
    """Markdown: k = 5, mean ± standard deviation over the seeds."""
    lines = known()
    for name in dict.fromkeys(line["data"] for line in lines):
        mine = [line for line in lines if line["data"] == name]
        keys = [key for key in KEYS if any(key in line for line in mine)]
        print(f"\n**{name}** ({mine[0]['concepts']} concepts)\n")
        print("| variant | " + " | ".join(keys) + " | fit [s] |")
        print("| --- |" + " ---: |" * (len(keys) + 1))
        for variant in VARIANTS:
            at_five = [line for line in mine if line["variant"] == variant and line["k"] == 5]
            cells = [spread([line[key] for line in at_five if key in line]) for key in (*keys, "fit_s")]
            print(f"| {variant} | " + " | ".join(cells) + " |")
        print(f"\naccuracy at k, seed 0:\n\n| variant | {' | '.join(str(k) for k in ks(mine))} |")
        print("| --- |" + " ---: |" * len(ks(mine)))
        for variant in VARIANTS:
            row = {line["k"]: line["accuracy"] for line in mine if line["variant"] == variant and line["seed"] == 0}
            print(f"| {variant} | " + " | ".join(f"{100 * row[k]:.1f}" if k in row else "–" for k in ks(mine)) + " |")


def ks(lines: list[dict[str, Any]]) -> list[Any]:
    """The values of k, in order, ``all`` last."""
    return sorted({line["k"] for line in lines}, key=lambda k: 10**9 if k == "all" else k)


def spread(values: list[float]) -> str:
    """``0.924 ± 0.003``; a dash for no values."""
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def plot() -> None:
    """Accuracy and names kept against k, one column for each data set."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [line for line in known() if line["seed"] == 0]
    names = list(dict.fromkeys(line["data"] for line in lines))
    figure, axes = pyplot.subplots(2, len(names), figsize=(5.5 * len(names), 8), squeeze=False, sharex="col")
    for column, name in enumerate(names):
        order = ks([line for line in lines if line["data"] == name])
        for row, (key, title) in enumerate((("accuracy", "test accuracy"), ("self_rank", "names kept (self-rank)"))):
            for number, variant in enumerate(VARIANTS):
                found = {line["k"]: line[key] for line in lines if line["data"] == name and line["variant"] == variant}
                places = [place for place, k in enumerate(order) if k in found]
                style = "--" if "(" in variant else "-"
                axes[row, column].plot(
                    places, [found[order[place]] for place in places], style, marker=".", label=variant,
                    color=f"C{number % 10}" if number < 10 else ("black", "gold", "navy", "lime")[number - 10],
                )  # fmt: skip
            axes[row, column].set_ylabel(title)
            axes[row, column].grid(alpha=0.3)
        axes[0, column].set_title(name)
        axes[1, column].set_xticks(range(len(order)), [str(k) for k in order])
        axes[1, column].set_xlabel("concepts of a picture that the head reads (k)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=110)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["run", name, *overrides]:
            run(name, overrides)
        case ["table"]:
            table()
        case ["plot"]:
            plot()
        case _:
            sys.exit(__doc__)
