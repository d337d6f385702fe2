"""Every method on real blood cells with annotated attributes (WBCAtt): accuracy, concepts, questions, edits.

    python benchmarks/real_cells.py run --root WBCATT --encoder local-dir:FOLDER [--cache CACHE]
    python benchmarks/real_cells.py table

``run`` reads and encodes the images once, and appends a line for each fit to ``benchmarks/results/real_cells.jsonl``;
lines that are there are not measured again. ``table`` prints the tables of ``docs/results_cells.md``.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from decisions import Images, Rows, holm, pack, unpack
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from cbm import config
from cbm.concepts import clean_class_names
from cbm.concepts.candidates import candidate_bank, concept_images, learn_bank, learns_concepts
from cbm.config import load_card
from cbm.data import FeatureData, FeatureSplit, ImageDataset, few_shot, unit_norm
from cbm.data.encoded import Encoding, encode_splits, read_images
from cbm.data.features import split_test
from cbm.data.text_store import text_encoder
from cbm.editing import create_editor, source_covariance
from cbm.editing.asking.propagation import propagate, to_activations, to_logits
from cbm.editing.asking.questions import ask_in_turn
from cbm.encoders import load_encoder
from cbm.encoders.base import Encoder
from cbm.errors import UserError
from cbm.files.console import set_up_logging
from cbm.layers import EnergyBottleneck, predict_logits
from cbm.methods import create_method, fit_method
from cbm.metrics.evaluate import known_concepts
from cbm.metrics.intervention import intervention_curve, told_together
from cbm.run.train import train
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
LABELLED = ("supervised", "energy")
"""Methods whose concepts are the annotated values."""
SHIFTED = ("zero_shot", "linear_probe", "labo", "posthoc", "posthoc, cav", "supervised", "energy")
"""Methods that are shown the other laboratory's images."""
SHOTS: tuple[Any, ...] = (1, 4, 16, "all")
SEEDS = (0, 1, 2)
TOLD = (0, 1, 2, 4, 8, 11)
POLICIES = ("random", "ucp", "cctp", "ectp", "eudtp", "coop")
PROMPTS = {
    "name": "{attribute}: {value}",
    "sentence": "a microscope picture of a white blood cell with {value} {attribute}",
}
EDITED = {"supervised": SEEDS, "posthoc, cav": (0,), "posthoc": (0,)}
"""Models that are edited for another laboratory, and their seeds."""
EDITORS = ("test_time", "prune", "recentre", "conda", "refit")
BLOCKS, ALONE = "test_time, whole attributes", "conda, without zero-shot"
SUPPORT = (4, 16)
DRAWS = 10


def compose(options: argparse.Namespace, seed: int, shots: Any, more: list[str]) -> Any:
    """The configuration of one fit, as ``train.py`` would have it."""
    settings = [
        "dataset=wbcatt", f"dataset.root={options.root}", f"encoder.model={options.encoder}", f"seed={seed}",
        f"shots={shots}", f"cache={options.cache}", "trainer.progress=false", "report=false", "controls=false",
        "nec=[]", *more,
    ]  # fmt: skip
    with hydra.initialize_config_dir(str(config.CONFIGS), version_base="1.3"):
        cfg = hydra.compose("train", settings)
    config.choose_encoder(cfg)
    return cfg


@dataclass
class Cells:
    """The images, read and encoded once.

    Attributes:
        options: the command line.
    """

    options: argparse.Namespace

    @cached_property
    def cfg(self) -> Any:
        """The configuration of a fit on all images."""
        return compose(self.options, 0, "all", METHODS["linear_probe"])

    @cached_property
    def encoder(self) -> Encoder:
        """The frozen encoder."""
        return load_encoder(self.cfg.encoder)

    @cached_property
    def images(self) -> ImageDataset:
        """The data set."""
        return read_images(self.cfg.dataset, Path(self.options.cache))

    @cached_property
    def data(self) -> FeatureData:
        """Its features."""
        return encode_splits(self.images, self.encoder, Encoding.of(self.cfg), ("train", "val", "test"))[1]

    @cached_property
    def shifted(self) -> FeatureSplit:
        """The test images, from the other laboratory."""
        card = load_card("wbcatt_shift")
        card.root = str(self.options.root)
        images = read_images(card, Path(self.options.cache), whole=True)
        return encode_splits(images, self.encoder, Encoding.of(self.cfg), ("test",))[1].test

    def fit(self, what: str, seed: int, shots: Any) -> tuple[Any, Any, FeatureData]:
        """The model, its concepts and what it was trained on, as ``train.py`` fits it."""
        cfg = compose(self.options, seed, shots, METHODS[what])
        method = create_method(cfg.method)
        encode_text = text_encoder(self.encoder, Path(cfg.cache), False)
        train = self.data.train
        rows = few_shot(train.y.numpy(), cfg.shots, seed, self.data.classes, subjects=train.subjects)
        data = replace(self.data, splits={**self.data.splits, "train": train.take(rows)}, seed=seed)
        if method.reads_class_names:
            data = replace(data, class_embeddings=encode_text(clean_class_names(data.classes)))
        bank = candidate_bank(method.concepts_from, cfg, self.images, self.encoder, encode_text)
        if learns_concepts(method.concepts_from, cfg):
            bank = learn_bank(concept_images(cfg, self.images), data, self.encoder, cfg)
        model, bank = fit_method(method, data, bank, self.encoder.logit_scale, seed=seed, trainer=cfg.trainer)
        return model, bank, data


def truth(cells: Cells) -> None:
    """Keep the labels of the tested images: means over classes need them."""
    if ("labels", "test", "all", 0) not in ROWS:
        labels = "".join(map(str, cells.data.test.y.tolist()))
        ROWS.add(("labels", "test", "all", 0), labels=labels, classes=cells.data.classes)


# ------------------------------------------------------------------------------------------------------------ methods


def right(model: Any, split: FeatureSplit) -> Tensor:
    """Whether the decision about every image is right, ``[N]``."""
    return predict_logits(model, split.x).argmax(1) == split.y


def methods(cells: Cells) -> None:
    """Decisions of every method at every number of shots."""
    for what in METHODS:
        for shots in SHOTS:
            for seed in SEEDS:
                if (what in UNTRAINED and (shots, seed) != ("all", 0)) or ("method", what, shots, seed) in ROWS:
                    continue
                try:
                    model, _, data = cells.fit(what, seed, shots)
                except UserError as error:
                    ROWS.add(("method", what, shots, seed), error=str(error)[:200])
                    continue
                ROWS.add(("method", what, shots, seed), right=pack(right(model, data.test)))


def shifted(cells: Cells) -> None:
    """Decisions at home and about the same images from another laboratory, all images trained on, seed 0."""
    for what in SHIFTED:
        if ("shifted", what, "all", 0) not in ROWS:
            model, bank, data = cells.fit(what, 0, "all")
            values = {"home": pack(right(model, data.test)), "right": pack(right(model, cells.shifted))}
            if what in LABELLED:
                for where, split in (("home_attributes", data.test), ("attributes", cells.shifted)):
                    known, groups = known_concepts(bank, split, data)
                    correct = values_right(probabilities(model, split.x), known, list(groups.values()))
                    values[where] = float(correct.double().mean())
            ROWS.add(("shifted", what, "all", 0), **values)


# --------------------------------------------------------------------------------------------------------- attributes


@torch.no_grad()
def probabilities(model: Any, x: Tensor) -> Tensor:
    """Probabilities ``[N, K]`` of the concepts."""
    if isinstance(model, EnergyBottleneck):
        return torch.cat([model.infer(part).concept_probability for part in x.split(1024)])
    return model.activations(x)


def values_right(probability: Tensor, known: Tensor, units: Sequence[Sequence[int]]) -> Tensor:
    """Whether the most probable value of every attribute is the true one, ``[N, U]``."""
    return torch.stack([probability[:, u].argmax(1) == known[:, u].argmax(1) for u in map(list, units)], dim=1)


def annotated(cells: Cells) -> None:
    """What is known of the annotated attributes by models that learn them, and what telling them does."""
    for what in LABELLED:
        for seed in SEEDS:
            if ("told", f"{what}, random", "all", seed) in ROWS:
                continue
            model, bank, data = cells.fit(what, seed, "all")
            known, groups = known_concepts(bank, data.test, data)
            trained_on, _ = known_concepts(bank, data.train, data)
            correct = values_right(probabilities(model, data.test.x), known, list(groups.values()))
            for number, (name, columns) in enumerate(groups.items()):
                most = int(trained_on[:, columns].sum(0).argmax())
                share = float((known[:, columns].argmax(1) == most).double().mean())
                if ("attribute", f"{what}: {name}", "all", seed) not in ROWS:
                    ROWS.add(
                        ("attribute", f"{what}: {name}", "all", seed), right=pack(correct[:, number]), majority=share
                    )
            (told_energies if isinstance(model, EnergyBottleneck) else told_probabilities)(seed, model, bank, data)


def prompts(cells: Cells) -> None:
    """What texts and support vector machines know of the annotated values, and the bank's phrases of their classes.

    AUROC of every value on the test images; whether the value of the highest score is the true one.
    """
    wanted = [(kind, attribute) for kind in (*PROMPTS, "cav") for attribute in cells.data.concept_groups]
    if any(("prompt", f"{kind}: {attribute}", "all", 0) not in ROWS for kind, attribute in wanted):
        _, cavs, data = cells.fit("posthoc, cav", 0, "all")
        known = data.test.concepts
        assert known is not None
        for kind, attribute in wanted:
            names = data.concept_groups[attribute]
            columns = [data.concept_names.index(name) for name in names]
            if kind == "cav":
                directions = cavs.directions()[[cavs.texts.index(name) for name in names]]
            else:
                values = [name.partition(": ")[2] for name in names]
                texts = [PROMPTS[kind].format(attribute=attribute, value=value) for value in values]
                directions = unit_norm(cells.encoder.encode_text(texts), texts)
            scores, true = data.test.x @ directions.T, known[:, columns]
            auroc = [float(binary_auroc(scores[:, i], true[:, i].long())) for i in range(len(columns))]
            correct = scores.argmax(1) == true.argmax(1)
            recalls = [float(correct[true.argmax(1) == i].double().mean()) for i in range(len(columns))]
            ROWS.add(("prompt", f"{kind}: {attribute}", "all", 0), auroc=auroc, right=pack(correct), recalls=recalls)
    if ("bank", "concepts/wbc.json", "all", 0) not in ROWS:
        cfg, data, cache = compose(cells.options, 0, "all", METHODS["cms"]), cells.data, Path(cells.options.cache)
        bank = candidate_bank("bank", cfg, cells.images, cells.encoder, text_encoder(cells.encoder, cache, False))
        assert bank is not None
        scores, found = data.test.x @ bank.directions().T, {}
        for number, name in enumerate(data.classes):
            own = bank.owners(data.classes)[number].nonzero().flatten().tolist()
            found[name] = [float(binary_auroc(scores[:, k], (data.test.y == number).long())) for k in own]
        ROWS.add(("bank", "concepts/wbc.json", "all", 0), auroc=found)


# ---------------------------------------------------------------------------------------------------------- questions

Answer = Callable[[Tensor], tuple[Tensor, Tensor]]


def tell(variant: str, seed: int, answer: Answer, concepts: Tensor, y: Tensor, units: list[list[int]]) -> None:
    """Keep the decisions as attributes are told in a random order, and how many untold ones are right."""
    correct, others = [], []

    def kept(told: Tensor) -> tuple[Tensor, Tensor]:
        scores, probability = answer(told)
        correct.append(pack(scores.argmax(1) == y))
        untold = torch.stack([told[:, unit].isnan().all(dim=1) for unit in units], dim=1)
        others.append(
            float(values_right(probability, concepts, units)[untold].double().mean()) if untold.any() else None
        )
        return scores, probability

    intervention_curve(kept, concepts, y, units, ratios=[count / len(units) for count in TOLD], seed=seed)
    ROWS.add(("told", variant, "all", seed), right=correct, others=others)


def told_energies(seed: int, model: EnergyBottleneck, bank: Any, data: FeatureData) -> None:
    """Telling an energy-based model, which infers the rest."""
    known, groups = known_concepts(bank, data.test, data)

    def answer(told: Tensor) -> tuple[Tensor, Tensor]:
        found = [model.infer(part, clamp=each) for part, each in zip(data.test.x.split(512), told.split(512))]
        return torch.cat([f.class_probability for f in found]), torch.cat([f.concept_probability for f in found])

    tell("energy, random", seed, answer, model.blocks.without_contradictions(known), data.test.y, list(groups.values()))


@torch.no_grad()
def told_probabilities(seed: int, model: Any, bank: Any, data: FeatureData) -> None:
    """Telling a bottleneck of probabilities: alone, with what goes with it, in a random order and by a policy."""
    known, groups = known_concepts(bank, data.test, data)
    units = told_together(known, list(groups.values()))
    activation, x, y = model.activations(data.test.x), data.test.x, data.test.y
    logits = to_logits(model, model.activations(data.val.x))
    means = torch.stack([logits[data.val.y == c].mean(0) for c in range(len(data.classes))])
    covariance = source_covariance(logits - means[data.val.y])  # of images that it was not trained on

    def alone(told: Tensor) -> tuple[Tensor, Tensor]:
        probability = told.where(~told.isnan(), activation)
        return torch.nn.functional.linear(probability, model.weights(), model.head.bias), probability

    def followed(told: Tensor) -> tuple[Tensor, Tensor]:
        moved = to_activations(model, propagate(to_logits(model, activation), ~told.isnan(), told, covariance))
        probability = told.where(~told.isnan(), moved)
        return torch.nn.functional.linear(probability, model.weights(), model.head.bias), probability

    for variant, answer, spread in (("", alone, None), (", propagated", followed, covariance)):
        asked, _ = known_concepts(bank, data.val, data)
        areas = {
            policy: ask_in_turn(model, data.val.x, data.val.y, asked, units, policy, covariance=spread, seed=seed).area
            for policy in POLICIES
        }
        best = max(areas, key=lambda policy: areas[policy])
        curve = ask_in_turn(model, x, y, known, units, best, covariance=spread, seed=seed)
        correct = []
        for count in TOLD:
            told = torch.full_like(known, float("nan"))
            for unit in curve.asked[:, :count].T:
                mine = torch.stack([torch.isin(torch.arange(known.shape[1]), torch.tensor(units[u])) for u in unit])
                told = torch.where(mine, known, told)
            decided = answer(told)[0].argmax(1) == y
            assert abs(float(decided.double().mean()) - float(curve.accuracy[count])) < 2e-3, (best, count)
            correct.append(pack(decided))
        ROWS.add(
            ("told", f"supervised, best policy{variant}", "all", seed), right=correct, policy=best, validation=areas
        )
    tell("supervised, random, propagated", seed, followed, known, y, units)
    tell("supervised, random", seed, alone, known, y, units)


# -------------------------------------------------------------------------------------------------------------- edits


def edits(cells: Cells, folder: Path) -> None:
    """Editors that correct models for another laboratory: labelled images from its val split, its test split tested."""
    card = load_card("wbcatt_shift")
    card.root = str(cells.options.root)
    cache = Path(cells.options.cache)
    for what, seed in ((what, seed) for what, seeds in EDITED.items() for seed in seeds):
        names = [*EDITORS, ALONE, *([BLOCKS] if what == "supervised" else [])]
        wanted = [(name, draw, n) for n in SUPPORT for draw in range(DRAWS) for name in names]
        if all(("edit", f"{what}: {name}, draw {draw}", n, seed) in ROWS for name, draw, n in wanted):
            continue
        path = folder / f"{what}-{seed}".replace(", ", "-")
        train(compose(cells.options, seed, "all", [*METHODS[what], f"run_dir={path}"]))
        model = load(path)
        home = model.split("test", cache=cache)
        there, shown = (model.split(name, dataset=card, cache=cache) for name in ("test", "val"))
        key = ("edit", f"{what}: unedited", 0, seed)
        if key not in ROWS:
            ROWS.add(key, right=pack(right(model.model, there)), home=pack(right(model.model, home)))
        for labelled, draw in ((labelled, draw) for labelled in SUPPORT for draw in range(DRAWS)):
            support, rest = split_test(shown, labelled, model.classes, draw)
            context = edit_context(model, card, support, rest, domain=card.name, cache=cache)
            groups = [group for group in known_concepts(model.bank, there, cells.data)[1].values() if group]
            for name in names:
                key = ("edit", f"{what}: {name}, draw {draw}", labelled, seed)
                if key in ROWS:
                    continue
                given = replace(context, groups=groups) if name == BLOCKS else context
                given = replace(given, zero_shot=None) if name == ALONE else given
                proposal = create_editor({"name": name.partition(",")[0], "seed": draw, "level": None}).propose(given)
                count = None if proposal.edits is None else len(proposal.edits)
                ROWS.add(key, right=pack(right(proposal.model, there)), home=pack(right(proposal.model, home)),
                         edits=count, reason=proposal.reason)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- tables


def stacked(rows: Sequence[dict[str, Any]], key: str = "right") -> np.ndarray:
    """Decisions ``[R, N]`` of R rows."""
    return np.stack([unpack(row[key]) for row in rows])


def cell(images: Images, values: np.ndarray, macro: bool = False, *, signed: bool = False) -> str:
    """Mean ± deviation over runs [95 % over images], in per cent (signed: in points)."""
    each = [images.mean(one, macro) for one in values]
    sign = "+" if signed else ""
    low, high = images.interval(values, macro)
    deviation = f" ± {100 * np.std(each, ddof=1):.1f}" if len(each) > 1 and np.std(each) > 1e-9 else ""
    return f"{100 * np.mean(each):{sign}.1f}{deviation} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def line(*cells: object) -> None:
    """Print a line of a table."""
    print("| " + " | ".join(map(str, cells)) + " |")


def head(title: str, *columns: object) -> None:
    """Print the title and the head of a table, whose first column is text."""
    print(f"\n**{title}**\n")
    line(*columns)
    line("---", *["---:"] * (len(columns) - 1))


def found(what: str, variant: str, shots: Any) -> list[dict[str, Any]]:
    """The rows of all seeds that could be fitted."""
    rows = [row for row in ROWS.where(what=what, variant=variant, shots=shots) if "right" in row]
    return sorted(rows, key=lambda row: row["seed"])


def method_tables(images: Images) -> None:
    """Every method: accuracy, mean over classes, and what it is ahead of the linear probe."""
    columns = ["1 shot", "4 shots", "16 shots", "all"]
    largest = np.bincount(images.labels).max() / len(images.labels)
    for title, macro in (("Accuracy", False), ("Macro accuracy (mean over classes)", True)):
        head(title, "method", *columns)
        line("the most frequent class", "", "", "", f"{100 * (1 / len(set(images.labels)) if macro else largest):.1f}")
        for what in METHODS:
            rows = [found("method", what, shots) for shots in SHOTS]
            line(what, *[cell(images, stacked(each), macro) if each else "–" for each in rows])
    compared = {}
    for what in METHODS:
        for shots in SHOTS:
            probe = {row["seed"]: unpack(row["right"]) for row in found("method", "linear_probe", shots)}
            mine = {
                row["seed"]: unpack(row["right"])
                for row in found("method", what, shots if what not in UNTRAINED else "all")
            }
            if what in UNTRAINED and mine:
                mine = dict.fromkeys(SEEDS, mine[0])
            if what != "linear_probe" and (both := sorted(set(probe) & set(mine))):
                compared[what, shots] = np.stack([mine[seed] - probe[seed] for seed in both])
    adjusted = dict(zip(compared, holm([images.p_value(values) for values in compared.values()])))
    head("Points ahead of the linear probe with the same shots", "method", *columns)
    for what in METHODS:
        shown = []
        for shots in SHOTS:
            if (values := compared.get((what, shots))) is None:
                shown.append("–")
                continue
            means = values.mean(axis=1)
            sure = adjusted[what, shots] < 0.05 and (abs(np.sign(means).sum()) == len(means))
            shown.append(f"**{cell(images, values, signed=True)}**" if sure else cell(images, values, signed=True))
        if what != "linear_probe":
            line(what, *shown)


def attribute_tables(images: Images) -> None:
    """Attributes of models that learn them, and AUROC of texts and of support vector machines."""
    names = list(dict.fromkeys(row["variant"].partition(": ")[2] for row in ROWS.where(what="attribute")))
    head("Attributes right (the most probable value of each)", "attribute", "most frequent value", *LABELLED)
    every: dict[str, list[np.ndarray]] = {kind: [] for kind in LABELLED}
    most = []
    for name in names:
        rows = {kind: found("attribute", f"{kind}: {name}", "all") for kind in LABELLED}
        for kind in LABELLED:
            every[kind].append(stacked(rows[kind]))
        most.append(rows["supervised"][0]["majority"])
        line(name, f"{100 * most[-1]:.1f}", *[cell(images, every[kind][-1]) for kind in LABELLED])
    line("mean of the attributes", f"{100 * np.mean(most):.1f}",
         *[cell(images, np.mean(every[kind], axis=0)) for kind in LABELLED])  # fmt: skip
    difference = np.mean(every["energy"], axis=0) - np.mean(every["supervised"], axis=0)
    print(f"\nenergy - supervised: {cell(images, difference, signed=True)} points")
    kinds = (*PROMPTS, "cav")
    ranges = [f"AUROC, {kind}" for kind in kinds]
    head("Values by their text and by support vector machines", "attribute", "values", *ranges,
         "macro by chance", *[f"macro, {kind}" for kind in kinds])  # fmt: skip
    aurocs: dict[str, list[float]] = {kind: [] for kind in kinds}
    macros: dict[str, list[float]] = {kind: [] for kind in kinds}
    chance = []
    for name in names:
        rows = {kind: ROWS.where(what="prompt", variant=f"{kind}: {name}")[0] for kind in kinds}
        for kind, row in rows.items():
            aurocs[kind] += row["auroc"]
            macros[kind].append(float(np.mean(row["recalls"])))
        count = len(rows["cav"]["auroc"])
        chance.append(1 / count)
        line(name, count, *[f"{min(row['auroc']):.2f} to {max(row['auroc']):.2f}" for row in rows.values()],
             f"{100 / count:.1f}", *[f"{100 * macros[kind][-1]:.1f}" for kind in kinds])  # fmt: skip
    line("mean", f"{sum(round(1 / each) for each in chance)}", *[f"{np.mean(each):.2f}" for each in aurocs.values()],
         f"{100 * np.mean(chance):.1f}", *[f"{100 * np.mean(each):.1f}" for each in macros.values()])  # fmt: skip
    below = ", ".join(f"{sum(v < 0.5 for v in each)} ({kind})" for kind, each in aurocs.items())
    print(f"\nvalues whose AUROC is below .5: {below}")
    phrases = ROWS.where(what="bank")[0]["auroc"]
    title = "AUROC of the bank's phrases for the class they were written for"
    head(title, "class", "phrases", "mean", "lowest", "highest", "below .5")
    for name, values in [*phrases.items(), ("all", [v for each in phrases.values() for v in each])]:
        line(name, len(values), f"{np.mean(values):.2f}", f"{min(values):.2f}", f"{max(values):.2f}",
             sum(v < 0.5 for v in values))  # fmt: skip


def told_tables(images: Images) -> None:
    """Accuracy as attributes are told."""
    head("Accuracy when so many of the 11 attributes are told", "model, order", *TOLD)
    variants = ["supervised, random", "supervised, random, propagated", "supervised, best policy",
                "supervised, best policy, propagated", "energy, random"]  # fmt: skip
    for variant in variants:
        rows = found("told", variant, "all")
        values = np.stack([[unpack(right) for right in row["right"]] for row in rows])
        policies = Counter(row["policy"] for row in rows if "policy" in row)
        name = variant + (f" ({', '.join(f'{policy} {n}x' for policy, n in policies.items())})" if policies else "")
        line(name, *[cell(images, values[:, i]) for i in range(len(TOLD))])
    head("Untold attributes right", "model, order", *TOLD[:-1])
    for variant in variants:
        rows = found("told", variant, "all")
        if "others" in rows[0]:
            means = [np.mean([row["others"][i] for row in rows]) for i in range(len(TOLD) - 1)]
            line(variant, *[f"{100 * mean:.1f}" for mean in means])


def edit_tables(images: Images) -> None:
    """The other laboratory, without and with edits."""
    head("The same test images from the other laboratory (all training images, seed 0)", "method", "home", "shifted",
         "change", "home, macro", "shifted, macro", "attributes right, home", "shifted")  # fmt: skip
    for row in ROWS.where(what="shifted"):
        home, there = unpack(row["home"])[None], unpack(row["right"])[None]
        attributes = [f"{100 * row[key]:.1f}" if key in row else "–" for key in ("home_attributes", "attributes")]
        line(row["variant"], cell(images, home), cell(images, there), cell(images, there - home, signed=True),
             cell(images, home, True), cell(images, there, True), *attributes)  # fmt: skip
    for what in EDITED:
        before = {row["seed"]: row for row in ROWS.where(what="edit", variant=f"{what}: unedited")}
        plain = stacked(list(before.values()))
        home = stacked(list(before.values()), "home")
        head(f"{what}: edited for the other laboratory", "labelled per class, editor", "shifted", "change",
             "change, macro", "draws", "home if applied there", "change at home", "edits of a draw")  # fmt: skip
        line("unedited", cell(images, plain), "", f"({cell(images, plain, True)})", "", cell(images, home), "", "")
        for labelled in SUPPORT:
            for name in (*EDITORS, ALONE, BLOCKS):
                rows = [row for row in ROWS.where(what="edit", shots=labelled)
                        if row["variant"].rpartition(", draw")[0] == f"{what}: {name}"]  # fmt: skip
                if not rows:
                    continue
                change = np.stack([unpack(row["right"]) - unpack(before[row["seed"]]["right"]) for row in rows])
                at_home = np.stack([unpack(row["home"]) - unpack(before[row["seed"]]["home"]) for row in rows])
                means = [100 * images.mean(one) for one in change]
                draws = f"{min(means):+.1f} to {max(means):+.1f}, {sum(m < 0 for m in means)} of {len(means)} worse"
                counts = [row["edits"] for row in rows if row["edits"] is not None]
                line(f"{labelled}, {name}", f"{100 * stacked(rows).mean():.1f}", cell(images, change, signed=True),
                     cell(images, change, True, signed=True), draws,
                     f"{100 * stacked(rows, 'home').mean():.1f}", cell(images, at_home, signed=True),
                     f"{np.mean(counts):.1f}, none in {counts.count(0)}" if counts else "a new model")  # fmt: skip


def table() -> None:
    """Print the tables of the page."""
    images = Images([int(digit) for digit in ROWS.where(what="labels")[0]["labels"]])
    method_tables(images)
    attribute_tables(images)
    told_tables(images)
    edit_tables(images)


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
    cells = Cells(options)
    truth(cells)
    annotated(cells)
    prompts(cells)
    shifted(cells)
    with tempfile.TemporaryDirectory() as folder:
        edits(cells, Path(folder))
    methods(cells)


if __name__ == "__main__":
    main()
