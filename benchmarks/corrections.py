"""Corrections for another domain: does the guard say no where there is nothing to gain, and what do editors gain?

    python benchmarks/corrections.py planted [--sets 200]
    python benchmarks/corrections.py run --run RUN --dataset CARD [--root FOLDER] [--strength S] [--shots 4]
    python benchmarks/corrections.py rotated --features FILE.npz --vocabulary FILE.npz [--offset 0.5]
    python benchmarks/corrections.py table

``planted`` draws small worlds, trains a head at home and hands every editor labelled images of another domain: one that
is not another at all, or one whose concepts moved, grew weak, or were turned into each other. ``run`` corrects a
finished run for a card of the same classes, ``rotated`` a head on given features whose test features are turned. Every
line goes to ``benchmarks/results/corrections.jsonl``; ``table`` makes ``benchmarks/results/corrections.md`` from them.
Changes are in points of accuracy on images that the editor was not shown, plain and balanced (mean of the classes);
*home* is what the same correction does to the source domain's test images if it is applied there too.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from cbm.config import load_card
from cbm.data import FeatureSplit
from cbm.data.features import split_test
from cbm.editing import EditContext, Proposal, create_editor, source_card
from cbm.layers import ConceptBottleneck, LinearHead
from cbm.metrics import class_accuracies
from cbm.trained import load
from cbm.trained.domains import edit_context

RESULTS = Path(__file__).parent / "results" / "corrections.jsonl"
TABLE = RESULTS.with_suffix(".md")
EDITORS = ("combined", "test_time", "prune", "recentre", "conda", "refit")
SHIFTS = ("none", "moved", "weak", "mixed", "moved, a class not shown", "moved, other proportions")


def add(what: str, **values: Any) -> None:
    """Append one line."""
    with RESULTS.open("a") as file:
        file.write(json.dumps({"what": what, **values}) + "\n")


def rows() -> list[dict[str, Any]]:
    """All lines."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.is_file() else []


def accuracy(logits: Tensor, y: Tensor) -> tuple[float, float]:
    """Plain and balanced accuracy, in per cent."""
    decided = logits.argmax(dim=1)
    plain = float((decided == y).double().mean())
    return 100 * plain, 100 * float(class_accuracies(decided, y, logits.shape[1]).nanmean())


def decided(model: ConceptBottleneck, proposal: Proposal, x: Tensor) -> Tensor:
    """Logits after a correction, behind its gate if it has one."""
    after = proposal.model.logits(x)
    return after if proposal.gate is None else torch.where(proposal.gate(x)[:, None], after, model.logits(x))


@dataclass(frozen=True)
class Case:
    """What is corrected, with images to test on."""

    context: EditContext
    there: FeatureSplit
    home: FeatureSplit


def measured(case: Case, name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """One correction, and what it changes there and at home."""
    model = case.context.model
    proposal = create_editor({"name": name, **settings}).propose(case.context)
    before, after = (
        accuracy(z, case.there.y) for z in (model.logits(case.there.x), decided(model, proposal, case.there.x))
    )
    first, then = (accuracy(z, case.home.y) for z in (model.logits(case.home.x), decided(model, proposal, case.home.x)))
    found = {"editor": name, "changed": proposal.changes, "unedited": before, "home_unedited": first}
    judgement = proposal.judgement
    found["p"] = None if judgement is None else judgement.p
    return found | {"plain": after[0] - before[0], "balanced": after[1] - before[1], "home": then[0] - first[0],
                    "home_balanced": then[1] - first[1]}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- planted

C, K, D, OWN = 5, 20, 32, 0.9


def world(seed: int) -> tuple[ConceptBottleneck, Tensor, torch.Generator]:
    """A model of C classes trained at home, the classes' concepts ``[C, K]``, and the generator to go on with."""
    g = torch.Generator().manual_seed(seed)
    shown = torch.where(torch.rand(C, K, generator=g) < 0.5, 1.0, -1.0)
    train = images(shown, 2000, g)
    directions = torch.eye(D)[:K]
    scores = (train.x @ directions.T).double()
    head = torch.zeros(K + 1, C, dtype=torch.float64)
    a = torch.cat([scores, torch.ones(len(scores), 1, dtype=torch.float64)], dim=1)
    target = torch.nn.functional.one_hot(train.y, C).double()
    for _ in range(300):  # logistic regression
        head += 4.0 * (a.T @ (target - (a @ head).softmax(dim=1)) / len(a) - 1e-4 * head)
    model = ConceptBottleneck(directions, LinearHead(head[:-1].T.float(), head[-1].float()))
    return model.calibrate(train.x).requires_grad_(False), shown, g


def images(shown: Tensor, count: int, g: torch.Generator, change: Any = None) -> FeatureSplit:
    """Images of all classes alike, unit-norm; ``change`` acts on their concepts ``[n, K]``."""
    y = torch.arange(count) % C
    concepts = shown[y] + 2 * OWN * torch.randn(count, K, generator=g)
    x = torch.cat([concepts if change is None else change(concepts), 2 * torch.randn(count, D - K, generator=g)], dim=1)
    return FeatureSplit(normalize(x, dim=1), y, [str(i) for i in range(count)])


def shift(kind: str, g: torch.Generator) -> Any:
    """Another domain: nothing, some concepts moved, some weak, or all turned a little into each other."""
    some = torch.randperm(K, generator=g)[: int(torch.randint(1, 7, (), generator=g))]
    by = 2.5 * torch.randn(len(some), generator=g)
    turn = torch.linalg.qr(torch.eye(K) + 0.25 * torch.randn(K, K, generator=g))[0]
    turn = turn * turn.diagonal().sign()

    def moved(concepts: Tensor) -> Tensor:
        return concepts.index_add(1, some, by.expand(len(concepts), -1).contiguous())

    def weak(concepts: Tensor) -> Tensor:
        factor = torch.ones(K)
        factor[some] = 0.2
        return concepts * factor

    kind = kind.partition(",")[0]
    return {"none": None, "moved": moved, "weak": weak, "mixed": lambda concepts: concepts @ turn.T}[kind]


def planted(sets: int, kinds: tuple[str, ...] = SHIFTS) -> None:
    """Every editor on planted target sets, with and without the guard: 4 labelled images per class, and 1 and 2."""
    done = {(r["seed"], r["kind"], r["shots"], r["editor"], r["guard"]) for r in rows() if r["what"] == "planted"}
    for seed in range(sets):
        model, shown, g = world(seed)
        home = images(shown, 1000, g)
        card = source_card(images(shown, 500, g).x, torch.arange(500) % C, C)
        for kind in kinds:
            change = shift(kind, g)
            there, pool = images(shown, 1000, g, change), images(shown, 40, g, change)
            if kind.endswith("proportions"):  # half of the images of class 0, and so on
                there = there.take(np.flatnonzero(np.isin(np.arange(1000) // C % 8, range(4)) | (there.y.numpy() == 0)))
            for n in (1, 2, 4) if seed < 10 else (4,):
                support = pool.take(np.arange(C * n))
                if kind.endswith("not shown"):
                    support = support.take(np.flatnonzero(support.y.numpy() > 0))
                if kind.endswith("proportions"):
                    support = pool.take(
                        np.flatnonzero((np.arange(40) < C * n) | ((pool.y.numpy() == 0) & (np.arange(40) < 8 * n)))
                    )
                context = EditContext(model, [f"concept {k}" for k in range(K)], [f"class {c}" for c in range(C)],
                                      "there", card, support, there.x)  # fmt: skip
                for name in EDITORS:
                    for guard in (True, False):
                        if (seed, kind, n, name, guard) in done or (name == "test_time" and seed >= 34):
                            continue
                        found = measured(
                            Case(context, there, home), name, {"seed": seed} | ({} if guard else {"level": None})
                        )
                        kept = {key: found[key] for key in ("editor", "changed", "balanced")}
                        add("planted", seed=seed, kind=kind, shots=n, guard=guard, **kept)


# ------------------------------------------------------------------------------------------------------------ real ones


def of_run(options: argparse.Namespace) -> Iterator[tuple[int, Case]]:
    """Draws of labelled images for a finished run: from a split of their own if the domain has one."""
    model = load(options.run)
    card = load_card(options.dataset)
    card.root = options.root or card.root
    if options.strength is not None:
        card.args.strength = options.strength
    home, there = model.split("test", cache=options.cache), model.split("test", dataset=card, cache=options.cache)
    own = options.dataset != "birds_shift"  # its validation images are from home
    shown = model.split("val", dataset=card, cache=options.cache) if own else None
    for draw in range(options.first, options.first + options.draws):
        support, rest = split_test(there if shown is None else shown, options.shots, model.classes, draw)
        tested = rest if shown is None else there
        context = edit_context(model, card, support, tested, domain=options.dataset, cache=options.cache)
        yield draw, Case(context, tested, home)


def rotated(options: argparse.Namespace) -> Iterator[tuple[int, Case]]:
    """A head on concepts of a vocabulary over given features, whose test features are turned in a random plane."""
    with np.load(options.features) as file:
        kept = {key: file[key] for key in ("X_train", "y_train", "X_test", "y_test")}
    with np.load(options.vocabulary) as file:
        words = normalize(torch.from_numpy(file["lvis"]).float(), dim=1)
    x, z = (normalize(torch.from_numpy(kept[f"X_{part}"]).float(), dim=1) for part in ("train", "test"))
    y, t = (torch.from_numpy(kept[f"y_{part}"]).long() for part in ("train", "test"))
    count = int(y.max()) + 1
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    fit, val = order[: len(x) * 3 // 4], order[len(x) * 3 // 4 :]
    scores = x[fit] @ words.T
    best = scores.var(dim=0).topk(200).indices
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(scores[:, best].numpy())
    head = LogisticRegression(C=0.1, max_iter=2000).fit(scaler.transform(scores[:, best].numpy()), y[fit].numpy())
    weights = head.coef_ / scaler.scale_
    bias = head.intercept_ - weights @ scaler.mean_
    model = ConceptBottleneck(
        words[best], LinearHead(torch.from_numpy(weights).float(), torch.from_numpy(bias).float())
    )
    model = model.calibrate(x[fit]).requires_grad_(False)
    card = source_card(x[val], y[val], count)
    for draw in range(options.first, options.first + options.draws):
        g = torch.Generator().manual_seed(1000 + draw)
        plane = torch.linalg.qr(torch.randn(x.shape[1], 2, generator=g))[0]
        mean = x[fit].mean(dim=0)
        offset = options.offset * mean.norm() * plane[:, 0]
        turned = normalize(z + offset, dim=1)
        split = FeatureSplit(turned, t, [str(i) for i in range(len(t))])
        support, rest = split_test(split, options.shots, [str(c) for c in range(count)], draw)
        context = EditContext(model, [f"word {k}" for k in best.tolist()], [str(c) for c in range(count)], "turned",
                              card, support, rest.x)  # fmt: skip
        yield draw, Case(context, rest, FeatureSplit(z, t, split.names))


def real(options: argparse.Namespace, cases: Iterator[tuple[int, Case]], name: str) -> None:
    """Every editor on draws of labelled images: unguarded, guarded, and the combination behind its gate."""
    ways: dict[str, dict[str, Any]] = {"unguarded": {"level": None}, "guarded": {}}
    more: dict[str, dict[str, Any]] = {
        "gated": {"protection": "gate"},
        "transductive, unguarded": {"transductive": True, "level": None},
        "transductive": {"transductive": True},
        "transductive, gated": {"transductive": True, "protection": "gate"},
    }
    done = {(r["name"], r["draw"], r["shots"], r["editor"], r["way"]) for r in rows() if r["what"] == "real"}
    for draw, case in cases:
        for editor in EDITORS:
            for way, settings in (ways | more if editor == "combined" else ways).items():
                if (name, draw, options.shots, editor, way) in done:
                    continue
                found = measured(case, editor, {"seed": draw, **settings})
                add("real", name=name, draw=draw, shots=options.shots, way=way, **found)


# -------------------------------------------------------------------------------------------------------------- tables


def mean(values: list[float]) -> float:
    """Their mean."""
    return sum(values) / len(values)


def planted_table() -> list[str]:
    """Rates of edits and mean changes on planted sets."""
    cells = defaultdict(list)
    for row in rows():
        if row["what"] == "planted":
            cells[row["shots"], row["kind"], row["editor"], row["guard"]].append(row)
    lines = []
    for shots in sorted({key[0] for key in cells}):
        lines += ["", f"**{shots} labelled images per class**", "",
                  "| shift | editor | sets | edited, guarded | change, guarded | worst | change, unguarded | worst |",
                  "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
        for kind in SHIFTS:
            for editor in EDITORS:
                with_, without = (cells[shots, kind, editor, guard] for guard in (True, False))
                if not with_:
                    continue
                edited = 100 * mean([row["changed"] for row in with_])
                guarded, raw = ([row["balanced"] for row in part] for part in (with_, without))
                lines.append(
                    f"| {kind} | {editor} | {len(with_)} | {edited:.1f} % | {mean(guarded):+.2f} | {min(guarded):+.1f} "
                    f"| {mean(raw):+.2f} | {min(raw):+.1f} |"
                )
    return lines


def real_table() -> list[str]:
    """Changes on real images."""
    cells = defaultdict(list)
    for row in rows():
        if row["what"] == "real":
            cells[row["name"], row["shots"], row["editor"], row["way"]].append(row)
    lines = []
    for name, shots in dict.fromkeys((key[0], key[1]) for key in cells):
        some = next(rows_ for key, rows_ in cells.items() if key[:2] == (name, shots))
        plain, balanced = (mean([row["unedited"][i] for row in some]) for i in (0, 1))
        home = mean([row["home_unedited"][0] for row in some])
        refit = mean([row["balanced"] for row in cells[name, shots, "refit", "unguarded"]] or [float("nan")])
        lines += ["", f"**{name}**, {shots} labelled images per class, {len(some)} draws; unedited {plain:.1f} plain, "
                  f"{balanced:.1f} balanced, at home {home:.1f}; refit's balanced change {refit:+.1f}", "",
                  "| editor | | corrected | plain | balanced | worst draw | draws below -1 | home |",
                  "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
        for editor in EDITORS:
            for part in (rows_ for key, rows_ in cells.items() if key[:3] == (name, shots, editor)):
                way = next(key[3] for key, rows_ in cells.items() if rows_ is part)
                change = [row["balanced"] for row in part]
                lines.append(
                    f"| {editor} | {way} | {100 * mean([row['changed'] for row in part]):.0f} % "
                    f"| {mean([row['plain'] for row in part]):+.1f} | {mean(change):+.1f} | {min(change):+.1f} "
                    f"| {sum(value < -1 for value in change)} | {mean([row['home'] for row in part]):+.1f} |"
                )
    return lines


def table() -> None:
    """Write the tables."""
    lines = ["# Corrections for another domain", "", "Made by `python benchmarks/corrections.py table`.", "",
             "## On planted sets", *planted_table(), "", "## On images", *real_table(), ""]  # fmt: skip
    TABLE.write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("planted", "run", "rotated", "table"))
    parser.add_argument("--sets", type=int, default=200)
    parser.add_argument("--kinds", nargs="*", choices=SHIFTS)
    parser.add_argument("--run")
    parser.add_argument("--dataset")
    parser.add_argument("--root")
    parser.add_argument("--strength", type=float)
    parser.add_argument("--features")
    parser.add_argument("--vocabulary")
    parser.add_argument("--offset", type=float, default=0.5)
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="seed of the first draw")
    parser.add_argument("--cache", default="cache")
    parser.add_argument("--name")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.task == "planted":
        planted(given.sets, tuple(given.kinds or SHIFTS))
    elif given.task == "run":
        real(given, of_run(given), given.name or given.dataset)
    elif given.task == "rotated":
        real(given, rotated(given), given.name or Path(given.features).stem)
    else:
        table()
