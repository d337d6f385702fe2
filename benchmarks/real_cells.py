"""Every method on real blood cells with annotated attributes (WBCAtt): accuracy, concepts, questions, edits.

    python benchmarks/real_cells.py run --root WBCATT --encoder local-dir:FOLDER [--cache CACHE]
    python benchmarks/real_cells.py table

``run`` appends a line for each fit to ``benchmarks/results/real_cells.jsonl``; lines that are there are not measured
again. ``table`` prints the tables of ``docs/results_cells.md``.
"""

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from decisions import Rows, interval, pack, shown, unpack
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from cbm import config
from cbm.config import load_card
from cbm.data import FeatureData, unit_norm
from cbm.data.features import FeatureSplit, split_test
from cbm.editing import create_editor, source_covariance
from cbm.editing.asking.propagation import propagate, to_activations, to_logits
from cbm.editing.asking.questions import ask_in_turn
from cbm.encoders import create_encoder
from cbm.errors import UserError
from cbm.files.console import set_up_logging
from cbm.layers import EnergyBottleneck, predict_logits
from cbm.methods import create_method, fit_method
from cbm.metrics.evaluate import known_concepts
from cbm.metrics.intervention import intervention_curve, told_together
from cbm.run.train import Clock, encode, gather, read_training_images, train
from cbm.trained import load
from cbm.trained.domains import edit_context

ROWS = Rows(Path(__file__).parent / "results" / "real_cells.jsonl", ("what", "variant", "shots", "seed"))

TEXT = "concepts=wbc"
METHODS: dict[str, list[str]] = {
    "zero_shot": ["method=zero_shot"],
    "cms": ["method=cms", TEXT],
    "linear_probe": ["method=linear_probe"],
    "labo": ["method=labo", TEXT],
    "v2c, general words": ["method=v2c", "concepts=general"],
    "posthoc": ["method=posthoc", TEXT],
    "posthoc, residual": ["method=posthoc", "method.residual=true", TEXT],
    "label_free": ["method=label_free", TEXT],
    "sparse, gumbel": ["method=sparse", "method.objective=gumbel", TEXT],
    "sparse, l1": ["method=sparse", "method.objective=l1", TEXT],
    "sparse, contrastive": ["method=sparse", "method.objective=contrastive", TEXT],
    "posthoc, cav": ["method=posthoc", "concepts=cav"],
    "supervised": ["method=supervised"],
    "energy": ["method=energy"],
}
UNTRAINED = ("zero_shot", "cms")
SHOTS = (1, 4, 16, "all")
SEEDS = (0, 1, 2)
TOLD = (0, 1, 2, 4, 8, 11)
POLICIES = ("random", "ucp", "cctp", "ectp", "eudtp", "coop")
PROMPTS = {
    "name": "{attribute}: {value}",
    "sentence": "a microscope picture of a white blood cell with {value} {attribute}",
}
EDITORS = ("test_time", "prune", "recentre", "conda", "refit")
LABELLED = (4, 16)
DRAWS = 3


def compose(options: argparse.Namespace, seed: int, shots: Any, more: list[str]) -> Any:
    """The configuration of one fit, as ``train.py`` would have it."""
    settings = [
        "dataset=wbcatt", f"dataset.root={options.root}", f"encoder.model={options.encoder}", f"seed={seed}",
        f"shots={shots}", f"cache={options.cache}", "trainer.progress=false", "report=false", "controls=false", "nec=[]",
        *more,
    ]  # fmt: skip
    with hydra.initialize_config_dir(str(config.CONFIGS), version_base="1.3"):
        cfg = hydra.compose("train", settings)
    config.choose_encoder(cfg)
    return cfg


READ: list[Any] = []
"""The data set, read once: neither shots nor seeds change it."""


def fit(cfg: Any) -> tuple[Any, Any, FeatureData]:
    """The model, its concepts and the data, by the code that ``train.py`` runs."""
    method, clock = create_method(cfg.method), Clock()
    if not READ:
        READ.append(read_training_images(cfg))
    inputs = gather(method, cfg, READ[0], clock)
    _, data, candidates = encode(method, cfg, inputs, clock)
    model, bank = fit_method(method, data, candidates, inputs.logit_scale, seed=cfg.seed, trainer=cfg.trainer)
    return model, bank, data


# ------------------------------------------------------------------------------------------------------------ methods


def methods(options: argparse.Namespace) -> None:
    """Accuracy of every method at every number of shots."""
    for what, more in METHODS.items():
        for shots in SHOTS:
            for seed in SEEDS:
                if (what in UNTRAINED and (shots, seed) != ("all", 0)) or ("method", what, shots, seed) in ROWS:
                    continue
                try:
                    model, bank, data = fit(compose(options, seed, shots, more))
                except UserError as error:
                    ROWS.add(("method", what, shots, seed), error=str(error)[:200])
                    continue
                predicted = predict_logits(model, data.test.x).argmax(1)
                recalls = [float((predicted == data.test.y)[data.test.y == c].double().mean()) for c in range(5)]
                values = {"right": pack(predicted == data.test.y), "macro": sum(recalls) / 5}
                ROWS.add(("method", what, shots, seed), **values)
                if shots == "all" and what in ("supervised", "energy"):
                    attributes(what, seed, model, bank, data)
                    questions(what, seed, model, bank, data)


# --------------------------------------------------------------------------------------------------------- attributes


def probabilities(model: Any, x: Tensor) -> Tensor:
    """Probabilities ``[N, K]`` of the concepts."""
    with torch.no_grad():
        if isinstance(model, EnergyBottleneck):
            return torch.cat([model.infer(part).concept_probability for part in x.split(1024)])
        return model.activations(x)


def attributes(what: str, seed: int, model: Any, bank: Any, data: FeatureData) -> None:
    """Which value of every attribute is the most probable: right or not, for every test image."""
    truth, groups = known_concepts(bank, data.test, data)
    probability = probabilities(model, data.test.x)
    train, _ = known_concepts(bank, data.train, data)
    for name, columns in groups.items():
        right = probability[:, columns].argmax(1) == truth[:, columns].argmax(1)
        most = int(train[:, columns].sum(0).argmax())
        ROWS.add(("attribute", f"{what}: {name}", "all", seed), right=pack(right),
                 majority=float((truth[:, columns].argmax(1) == most).double().mean()))  # fmt: skip


def prompts(options: argparse.Namespace) -> None:
    """AUROC of every value of every attribute: its text in a prompt, and a support vector machine on its labels."""
    _, bank, data = fit(compose(options, 0, "all", METHODS["posthoc, cav"]))
    encoder = create_encoder(options.encoder)
    truth = data.test.concepts
    for kind in (*PROMPTS, "cav"):
        for attribute, names in data.concept_groups.items():
            if ("prompt", f"{kind}: {attribute}", "all", 0) in ROWS:
                continue
            values = []
            for name in names:
                column = data.concept_names.index(name)
                if not 0 < float(truth[:, column].sum()) < len(truth):
                    continue
                if kind == "cav":
                    if name not in bank.texts:
                        continue
                    direction = bank.directions()[bank.texts.index(name)]
                else:
                    text = PROMPTS[kind].format(attribute=attribute, value=name.partition(": ")[2])
                    direction = unit_norm(encoder.encode_text([text]), [text])[0]
                values.append(float(binary_auroc(data.test.x @ direction, truth[:, column].long())))
            ROWS.add(("prompt", f"{kind}: {attribute}", "all", 0), auroc=values)


# ---------------------------------------------------------------------------------------------------------- questions


def questions(what: str, seed: int, model: Any, bank: Any, data: FeatureData) -> None:
    """Accuracy as attributes are told: in a random order, with and without what follows from them, and by a policy."""
    truth, groups = known_concepts(bank, data.test, data)
    units = list(groups.values())
    x, y = data.test.x, data.test.y
    ratios = [count / len(units) for count in TOLD]

    def keep(variant: str, answer: Any, concepts: Tensor) -> None:
        curve = intervention_curve(answer, concepts, y, units, ratios=ratios, seed=seed)
        others = [None if math.isnan(value) else value for value in curve.others_accuracy]
        ROWS.add(("told", variant, "all", seed), accuracy=curve.class_accuracy, others=others)

    if isinstance(model, EnergyBottleneck):

        def inferred(told: Tensor) -> tuple[Tensor, Tensor]:
            found = [model.infer(part, clamp=known) for part, known in zip(x.split(512), told.split(512))]
            return torch.cat([f.class_probability for f in found]), torch.cat([f.concept_probability for f in found])

        keep("energy, random", inferred, model.blocks.without_contradictions(truth))
        return
    with torch.no_grad():
        seen = model.activations(data.train.x)
        logits = to_logits(model, seen)
        means = torch.stack([logits[data.train.y == c].mean(0) for c in range(len(data.classes))])
        covariance = source_covariance(logits - means[data.train.y])
        own = to_logits(model, model.activations(x))

    def alone(told: Tensor) -> tuple[Tensor, Tensor]:
        probability = told.where(~told.isnan(), model.activations(x))
        return torch.nn.functional.linear(probability, model.weights(), model.head.bias), probability

    def followed(told: Tensor) -> tuple[Tensor, Tensor]:
        moved = to_activations(model, propagate(own, ~told.isnan(), told, covariance))
        probability = told.where(~told.isnan(), moved)
        return torch.nn.functional.linear(probability, model.weights(), model.head.bias), probability

    with torch.no_grad():
        keep("supervised, random", alone, truth)
        keep("supervised, random, propagated", followed, truth)
    known, _ = known_concepts(bank, data.val, data)
    asked = told_together(truth, units)
    areas = {}
    for policy in POLICIES:
        curve = ask_in_turn(model, data.val.x, data.val.y, known, asked, policy, seed=seed)
        areas[policy] = curve.area
    best = max(areas, key=lambda policy: areas[policy])
    curve = ask_in_turn(model, x, y, truth, asked, best, seed=seed)
    ROWS.add(("told", "supervised, best policy on validation", "all", seed), policy=best,
             accuracy=[float(curve.accuracy[count]) for count in TOLD])  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- edits


def edits(options: argparse.Namespace, folder: Path) -> None:
    """Editors that correct a supervised model for another stain and camera."""
    cache = Path(options.cache)
    card = load_card("wbcatt_shift")
    card.root = str(options.root)
    for seed in SEEDS:
        if all(("edit", f"{each}, draw {draw}", n, seed) in ROWS for each in ("unedited", *EDITORS)
               for n in LABELLED for draw in range(DRAWS)):  # fmt: skip
            continue
        path = folder / f"supervised-{seed}"
        train(compose(options, seed, "all", ["method=supervised", f"run_dir={path}"]))
        model = load(path)
        home = model.split("test", cache=cache)
        there = model.split("test", dataset=card, cache=cache)
        for labelled in LABELLED:
            for draw in range(DRAWS):
                support, rest = split_test(there, labelled, model.classes, draw)
                context = edit_context(model, card, support, rest, domain=card.name, cache=cache)
                models = {"unedited": context.model}
                count = {}
                for name in EDITORS:
                    proposal = create_editor({"name": name, "seed": draw}).propose(context)
                    models[name] = proposal.model
                    count[name] = None if proposal.edits is None else len(proposal.edits)
                tested = torch.tensor([name in set(rest.names) for name in there.names])
                for name, each in models.items():
                    right = each.logits(there.x).argmax(1) == there.y
                    values = {"right": pack(right), "tested": pack(tested), "macro": macro(each, rest)}
                    values |= {"home": accuracy(each, home), "home_macro": macro(each, home), "edits": count.get(name)}
                    ROWS.add(("edit", f"{name}, draw {draw}", labelled, seed), **values)


def accuracy(model: Any, split: FeatureSplit) -> float:
    """Share of images that are decided right."""
    return float((model.logits(split.x).argmax(1) == split.y).double().mean())


def macro(model: Any, split: FeatureSplit) -> float:
    """Mean over the classes that have images."""
    right = (model.logits(split.x).argmax(1) == split.y).double()
    return float(np.mean([float(right[split.y == c].mean()) for c in split.y.unique().tolist()]))


# ------------------------------------------------------------------------------------------------------------- tables


def percent(values: list[float]) -> str:
    """Mean ± deviation over seeds, in per cent."""
    deviation = f" ± {100 * np.std(values, ddof=1):.1f}" if len(values) > 1 and np.std(values) > 1e-9 else ""
    return f"{100 * np.mean(values):.1f}{deviation}"


def table() -> None:
    """Print the tables of the page."""
    for key, title in (("right", "accuracy"), ("macro", "mean over classes")):
        print(f"\n### Every method: {title}\n\n| method | 1 shot | 4 shots | 16 shots | all |\n|---|---|---|---|---|")
        for what in METHODS:
            cells = []
            for shots in SHOTS:
                found = [row for row in ROWS.where(what="method", variant=what, shots=shots) if key in row]
                if key == "right":
                    cells.append(shown([[unpack(row["right"]) for row in found]]) if found else "–")
                else:
                    cells.append(percent([row["macro"] for row in found]) if found else "–")
            print(f"| {what} | {' | '.join(cells)} |")
    print("\n### Attributes\n\n| attribute | most frequent value | supervised | energy |\n|---|---|---|---|")
    names = [row["variant"].partition(": ")[2] for row in ROWS.where(what="attribute", seed=0)]
    for name in dict.fromkeys(names):
        found = {kind: ROWS.where(what="attribute", variant=f"{kind}: {name}") for kind in ("supervised", "energy")}
        cells = [shown([[unpack(row["right"]) for row in rows]]) for rows in found.values()]
        print(f"| {name} | {100 * found['energy'][0]['majority']:.1f} | {' | '.join(cells)} |")
    kinds = (*PROMPTS, "cav")
    print(f"\n### AUROC of attribute values\n\n| attribute | {' | '.join(kinds)} |\n|---|{'---|' * len(kinds)}")
    for name in dict.fromkeys(names):
        values = [ROWS.where(what="prompt", variant=f"{kind}: {name}")[0]["auroc"] for kind in kinds]
        print(f"| {name} | {' | '.join(f'{np.mean(v):.2f}' if v else '–' for v in values)} |")
    every = [[v for row in ROWS.where(what="prompt") if row["variant"].startswith(f"{kind}: ") for v in row["auroc"]]
             for kind in kinds]  # fmt: skip
    print(f"| all values | {' | '.join(f'{np.mean(v):.3f}' for v in every)} |")
    print(f"\n### Told\n\n| told | {' | '.join(map(str, TOLD))} |\n|---|{'---|' * len(TOLD)}")
    for variant in dict.fromkeys(row["variant"] for row in ROWS.where(what="told")):
        rows = ROWS.where(what="told", variant=variant)
        cells = [percent([row["accuracy"][i] for row in rows]) for i in range(len(TOLD))]
        chosen = sorted({row["policy"] for row in rows if "policy" in row})
        print(f"| {variant}{f' ({chr(44).join(chosen)})' if chosen else ''} | {' | '.join(cells)} |")
        if "others" in rows[0]:
            cells = ["–" if row0 is None else percent([row["others"][i] for row in rows])
                     for i, row0 in enumerate(rows[0]["others"])]  # fmt: skip
            print(f"| … untold attribute values right | {' | '.join(cells)} |")
    print("\n### Edits\n")
    for labelled in LABELLED:
        print(f"\n{labelled} labelled images per class\n\n| editor | shifted | change | shifted, macro | home | home, macro "
              "| proposals with edits |\n|---|---|---|---|---|---|---|")  # fmt: skip
        plain: dict[tuple, np.ndarray] = {}
        for name in ("unedited", *EDITORS):
            rows = [row for row in ROWS.where(what="edit", shots=labelled) if row["variant"].startswith(f"{name}, ")]
            if not rows:
                continue
            right = {}
            for row in rows:
                key = (row["seed"], row["variant"].rpartition(" ")[2])
                right[key] = np.where(unpack(row["tested"]) == 1, unpack(row["right"]), np.nan)
            plain = plain or right
            change = np.stack([right[key] - plain[key] for key in right])
            low, high = interval(change)
            done = [row["edits"] for row in rows if row["edits"] is not None]
            print(f"| {name} | {shown([list(right.values())])} | {100 * np.nanmean(change):+.1f} [{100 * low:+.1f}, "
                  f"{100 * high:+.1f}] | {percent([row['macro'] for row in rows])} | "
                  f"{percent([row['home'] for row in rows])} | {percent([row['home_macro'] for row in rows])} | "
                  f"{sum(n > 0 for n in done)} of {len(rows)} |" if done or name == "unedited" else "", end="")  # fmt: skip
            print("" if done or name == "unedited" else
                  f"| {name} | {shown([list(right.values())])} | {100 * np.nanmean(change):+.1f} [{100 * low:+.1f}, "
                  f"{100 * high:+.1f}] | {percent([row['macro'] for row in rows])} | "
                  f"{percent([row['home'] for row in rows])} | {percent([row['home_macro'] for row in rows])} | another "
                  "model |")  # fmt: skip
    print(f"\n{len(ROWS.rows)} rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("--root", type=Path, help="folder of WBCAtt")
    parser.add_argument("--encoder", help="encoder.model, such as local-dir:FOLDER")
    parser.add_argument("--cache", default="cache", help="folder of the feature store")
    options = parser.parse_args()
    if options.what == "table":
        table()
        return
    if options.root is None or options.encoder is None:
        parser.error("run needs --root FOLDER and --encoder MODEL")
    set_up_logging()
    config.register()
    torch.set_num_threads(1)
    methods(options)
    prompts(options)
    with tempfile.TemporaryDirectory() as folder:
        edits(options, Path(folder))


if __name__ == "__main__":
    main()
