"""What the names of concepts are worth on real CLIP features: the part of ``real_clip.py`` that an independent reader
takes part in (``cbm.metrics.reader``). Everything is read or solved on codes of a few words per image."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from decisions import Rows, pack, shown, unpack
from omegaconf import DictConfig
from torch import Tensor
from torch.nn.functional import normalize

from cbm.concepts import ConceptBank
from cbm.data import FeatureData
from cbm.data.features import mean_feature
from cbm.kernels import class_logits, class_vectors
from cbm.layers import ConceptBottleneck, predict_logits
from cbm.methods.name_tied import solve_name_tied
from cbm.methods.sparse_head import SparseHeadConfig, solve_sparse_head
from cbm.metrics.codes import code_metrics as code_facts
from cbm.metrics.dictionaries import directions_like
from cbm.metrics.nec import resolve_heads
from cbm.metrics.reader import Reading, centre_directions, few_words, read
from cbm.run.controls import random_heads
from cbm.run.evidence import Subject, code_metrics, read_names
from cbm.solvers import SparseScores

PROMPT = "a {}"
WORDS = (5, 10, 20)
DRAWS = {"food": 10, "cifar": 5}
"""Draws of random directions, and of exchanged names, in every division."""
SHOTS = (1, 4, 16, "all")
KINDS = {
    "named": "the words",
    "exchanged": "the words, names exchanged",
    "isotropic": "random, isotropic",
    "covariance": "random, covariance of the words",
    "images": "random, covariance of the images",
}
"""Directions that are read, and how the page calls them."""
HEADS = {
    "names head, 0.3": ("names head, lam 0.3", ("named", "exchanged", "covariance")),
    "names head, 3": ("names head, lam 3", ("named", "exchanged", "covariance")),
    "free head": ("free head", ("named", "covariance")),
}
"""Heads on the code of five words, how the page calls them, and the directions they are solved on."""
METHODS: dict[str, list[str]] = {
    "splice": ["method=splice"],
    "splice, names head": ["method=splice", "method.head=names"],
    "splice, zero-shot": ["method=splice", "method.head=none"],
    "splice, reader": ["method=splice", "method.head=none", "method.untrained=reader"],
    "posthoc, names head": ["method=posthoc", "method.head=names"],
    "zcbm": ["method=zcbm"],
}
"""Methods that are measured with all images of Food-10 only, beside those of ``real_clip.py``."""
TIED = ("splice, names head", "posthoc, names head")
"""Methods that are also fitted on exchanged names and on random directions, three draws each."""
SLOW = ("sparse, gumbel", "sparse, contrastive")
"""Left out: their K x K layers take minutes."""


@dataclass
class Case:
    """One division of a set, and its words as the reader understands them.

    Attributes:
        data: encoded splits, with all training images.
        bank: the words; ``bank.says`` is what they say of the classes.
        texts: text vectors ``[C, D]`` of the class names, by the encoder of the features.
    """

    data: FeatureData
    bank: ConceptBank
    texts: Tensor

    def __post_init__(self) -> None:
        self.words = self.bank.directions().float()
        self.mean = mean_feature(self.data.train.x)

    def directions(self, kind: str, draw: int) -> Tensor:
        """Directions ``[K, D]``: the words, or as many random ones."""
        if kind in ("named", "exchanged"):
            return self.words
        if kind in ("covariance", "images"):
            away = normalize(self.data.train.x.float() - self.mean, dim=1)
            like = centre_directions(self.words) if kind == "covariance" else away
            return directions_like(torch.cov(like.T), len(self.words), draw)
        return normalize(torch.randn(self.words.shape, generator=torch.Generator().manual_seed(draw)), dim=1)

    def says(self, kind: str, draw: int) -> Tensor:
        """What the names say of the classes ``[K, C]``; dealt out anew if exchanged."""
        says = self.bank.says
        if kind == "exchanged":
            says = says[torch.randperm(len(says), generator=torch.Generator().manual_seed(1000 + draw))]
        return says

    def control(self, kind: str, draw: int) -> ConceptBank:
        """The words with other directions or exchanged names."""
        return replace(self.bank, embeddings=self.directions(kind, draw), says=self.says(kind, draw))

    def own(self, directions: Tensor) -> Tensor:
        """What the directions say by their own vectors ``[K, C]``: the code zero-shot, which is no evidence."""
        texts = normalize(self.texts - normalize(self.words, dim=1).mean(dim=0), dim=1)
        own = centre_directions(directions) @ texts.T
        return own - own.mean(dim=1, keepdim=True)


def numbers(found: Reading) -> dict[str, Any]:
    """A reading without the name of who read."""
    kept = ("accuracy", "low", "high", "null", "null_sd", "null_max", "p", "draws")
    return {name: getattr(found, name) for name in kept}


def reads(case: Case, kind: str, draw: int) -> Iterator[dict[str, Any]]:
    """Readings of the test images at every number of words."""
    directions, says, test = case.directions(kind, draw), case.says(kind, draw), case.data.test
    own = case.own(directions)
    for count in WORDS:
        code = few_words(test.x, directions, case.mean, count)
        found = read(code, says, test.y, "reader", seed=draw)
        right, zero_shot = (code.reconstruct(by).argmax(dim=1) == test.y for by in (says, own))
        yield {"words": count, "right": pack(right), "zero_shot": pack(zero_shot)} | numbers(found)


def heads(case: Case, data: FeatureData, draw: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Decisions of heads on the code of five words, trained on the labels of some training images."""
    scale = None
    for kind in ("named", "exchanged", "covariance"):
        directions, says = case.directions(kind, draw), case.says(kind, draw)
        code, held, test = (few_words(part.x, directions, case.mean) for part in (data.train, data.val, case.data.test))
        for name, (_, kinds) in HEADS.items():
            if kind not in kinds:
                continue
            if name == "free head":
                scores = SparseScores(code.values, code.columns, len(says))
                head = solve_sparse_head(
                    scores, data, SparseHeadConfig(), lambda w, b, held=held: held.reconstruct(w.T) + b
                )
                weight, bias, facts = head.weight(), head.bias, {}
            else:
                unit = torch.ones(len(says))  # the reader's own units
                scores = SparseScores(code.values, code.columns, len(says), std=unit)
                tied = solve_name_tied(scores, data.train.y, says, lam=float(name.split()[-1]), scale=scale)
                scale = tied.scale  # that of the names, also for what is no name
                weight, bias = tied.weight(says), tied.bias
                facts = {"gap": tied.gap, "scale": tied.scale, "used": int((tied.gain > 0).sum())}
            right = (test.reconstruct(weight.T) + bias).argmax(dim=1) == case.data.test.y
            yield f"{name}, {kind}", {"right": pack(right)} | facts


def evidence(
    cfg: DictConfig, model: Any, bank: ConceptBank | None, data: FeatureData, random: dict[int, list[float]]
) -> dict[str, Any]:
    """What a trained model is shown with: accuracy, a head with five of its concepts per class beside as many random
    directions, and the reader.

    Args:
        cfg: a ``cbm.config.TrainConfig``.
        model: the model.
        bank: the concepts of its columns, or None.
        data: encoded splits.
        random: accuracies of heads on random directions by their number, which grows.
    """
    test, count = data.test, 0 if bank is None else len(bank)
    row: dict[str, Any] = {"right": pack(predict_logits(model, test.x).argmax(1) == test.y)}
    if not isinstance(model, ConceptBottleneck) or bank is None or bank.says is None:
        return row
    head = resolve_heads(model, data.train, len(data.classes), [5])[0]
    logits = class_logits(test.x, *class_vectors(model.concepts, head.weight, bias=head.bias))
    row["five"] = pack(logits.argmax(dim=1) == test.y)
    if count not in random:
        random[count] = [round(value, 4) for value in random_heads(count, data, 20, 0)]
    subject = Subject(model, bank, data, cfg, None, lambda texts: torch.empty(0))
    words, readings = read_names(subject)
    row |= {"concepts": count, "random": random[count], "reader": numbers(readings[-1]), "of_texts": subject.of_texts}
    return row | {"code": {**code_metrics(subject, words), **code_facts(model, test.x)}}


def percent(values: Any, digits: int = 1) -> str:
    """Mean ± deviation of shares, in per cent."""
    values = 100 * np.asarray(values, dtype=float)
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 and values.std() > 1e-9 else ""
    return f"{values.mean():.{digits}f}{spread}"


def exchanged(found: list[dict[str, Any]]) -> str:
    """The null of some readings: mean ± deviation, largest."""
    mean, sd = (100 * np.mean([r[key] for r in found]) for key in ("null", "null_sd"))
    return f"{mean:.1f} ± {sd:.1f}, at most {100 * max(r['null_max'] for r in found):.1f}"


def main_table(rows: Rows, methods: list[str]) -> None:
    """Every method with all images of Food-10."""
    print("\n### food: every method and its names\n")
    print("| method | accuracy | five concepts per class (random directions) | reader of five words | names exchanged "
          "| name value |\n|---|---|---|---|---|---|")  # fmt: skip
    for what in methods:
        for row in rows.where(set="food", what=f"evidence, {what}"):
            cells = [shown([[unpack(row["right"])]]), "–", "–", "–", "–"]
            if "reader" in row and what != "zero_shot":  # whose concepts are the class names
                found = row["reader"]
                cells[1] = f"{percent([unpack(row['five']).mean()])} ({percent(row['random'])})"
                cells[2] = f"{100 * found['accuracy']:.1f} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"
                cells[3] = exchanged([found])
                cells[4] = f"{100 * (found['accuracy'] - found['null']):+.1f}"
            print(f"| {what} | {' | '.join(cells)} |")


def reader_table(rows: Rows, name: str) -> None:
    """Directions that are read by another text encoder, and by their own vectors."""
    print(f"\n### {name}: read by another text encoder\n")
    print("| words of an image | directions | reader | names exchanged | draws with p < .05 | smallest p "
          "| read by their own vectors (code zero-shot) |\n|---|---|---|---|---|---|---|")  # fmt: skip
    for count in WORDS:
        for kind, label in KINDS.items():
            found = [r for row in rows.where(set=name, what=f"reader, {kind}") for r in row["reads"]
                     if r["words"] == count]  # fmt: skip
            if found:
                value = percent([r["accuracy"] for r in found])
                value = f"**{value}**" if kind == "named" else value
                beyond = f"{sum(r['p'] < 0.05 for r in found)} of {len(found)} | {min(r['p'] for r in found):.3f}"
                own = percent([unpack(r["zero_shot"]).mean() for r in found])
                print(f"| {count} | {label} | {value} | {exchanged(found)} | {beyond} | {own} |")


def heads_table(rows: Rows, name: str) -> None:
    """Heads on the code of five words by number of training images."""
    print(f"\n### {name}: heads on the code of five words\n")
    print("| head | directions | 1 shot | 4 shots | 16 shots | all |\n|---|---|---|---|---|---|")
    for head, (label, kinds) in HEADS.items():
        for kind in kinds:
            cells = []
            for shots in SHOTS:
                found = rows.where(set=name, what=f"{head}, {kind}", shots=shots)
                splits = sorted({r["split"] for r in found})
                decided = [[unpack(r["right"]) for r in found if r["split"] == split] for split in splits]
                cells.append(shown(decided) if decided else "–")
            print(f"| {label} | {KINDS[kind]} | {' | '.join(cells)} |")


def tied_table(rows: Rows) -> None:
    """Name-tied heads on few words and on all of them, and what they reach without the names."""
    print("\n### food: name-tied heads under exchanged names\n")
    print("| method | the words | names exchanged | random, covariance of the words |\n|---|---|---|---|")
    for what in TIED:
        cells = []
        for name in (f"evidence, {what}", f"{what}, exchanged", f"{what}, covariance"):
            found = rows.where(set="food", what=name)
            cells.append(shown([[unpack(row["right"]) for row in found]]) if found else "–")
        print(f"| {what} | {' | '.join(cells)} |")


def notes(rows: Rows) -> list[str]:
    """What the page says of the codes, and how exact the heads are."""
    lines = []
    for row in rows.rows:
        if row["what"].startswith("evidence, ") and "code" in row:
            said = {key.removeprefix("test/"): round(value, 4) for key, value in row["code"].items()}
            lines.append(f"{row['set']}, {row['what']}: {row['concepts']} concepts, of texts {row['of_texts']}, {said}")
    gaps = [row["gap"] for row in rows.rows if row["what"].startswith("names head")]
    return [*lines, f"names heads: at most {max(gaps):.0e} nats above the optimum"] if gaps else lines
