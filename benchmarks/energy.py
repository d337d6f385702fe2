"""Energy-based bottlenecks: what inference costs, what training the energies together is worth.

    python benchmarks/energy.py speed
    python benchmarks/energy.py birds [overrides as for train.py]
    python benchmarks/energy.py breasts [overrides as for train.py]

``speed``: seconds per batch of 64 at CUB sizes (112 concepts, 200 classes, 2,048 features, 512 hidden; random weights)
for the published head, stepped as its released loop steps it, and for every method of ``infer``.

``birds``: paper birds, 5 seeds. How close every estimator comes to enumeration (four groups, 720 concept vectors);
conditional probabilities against those of the generator; accuracy as more and more
concepts are told, beside supervised bottlenecks on the same features. ``breasts``: whether they
follow bellies, by three estimators. Prints markdown and writes ``benchmarks/results/energy_*.md``.
"""

import datetime
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import torch
from sklearn.neural_network import MLPClassifier
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from cbm import config
from cbm.concepts.candidates import candidate_bank
from cbm.data import birds
from cbm.data.encoded import Encoding, encode_splits, read_images
from cbm.data.text_store import text_encoder
from cbm.encoders import load_encoder
from cbm.files.console import set_up_logging
from cbm.layers import EnergyBottleneck, ReleasedEnergyBottleneck
from cbm.methods import create_method, fit_method
from cbm.metrics import intervention_curve
from cbm.metrics.evaluate import evaluate_split
from cbm.solvers.concept_blocks import concept_blocks
from cbm.solvers.concept_distribution import from_joint, from_labels
from cbm.solvers.energy import METHODS
from cbm.solvers.released_energy import released_inference

RESULTS = Path(__file__).parent / "results"
SEEDS = range(5)


class PublishedHead(nn.Module):
    """The three energy networks with all their tensors: K scorers in a loop, a projection of K H numbers."""

    def __init__(self, dim: int = 2048, num_classes: int = 200, num_concepts: int = 112, hidden: int = 512):
        super().__init__()
        self.classes, self.concepts = (nn.Parameter(torch.randn(n, hidden)) for n in (num_classes, 2 * num_concepts))
        self.to_class, self.to_concept = nn.Linear(dim, hidden), nn.Linear(dim, hidden)
        self.class_scorer, self.joint_scorer = nn.Linear(hidden, 1), nn.Linear(hidden, 1)
        self.concept_scorers = nn.ModuleList([nn.Linear(hidden, 1) for _ in range(num_concepts)])
        self.project = nn.Linear(num_concepts * hidden, hidden)

    def forward(self, x: Tensor, class_logit: Tensor, concept_logit: Tensor) -> Tensor:
        """Loss of one step, from features ``[B, D]`` and the logits ``[B, M]`` and ``[B, K, 2]`` that are moved."""
        count = len(self.concept_scorers)
        present, absent = self.concepts[:count], self.concepts[count:]
        p, q = class_logit.softmax(1), concept_logit.softmax(2)
        u = normalize(p @ self.classes, dim=1)
        seen = self.to_class(x)
        loss = self.class_scorer((seen + seen * u).relu()).mean()
        seen = self.to_concept(x)
        for k, scorer in enumerate(self.concept_scorers):
            v = normalize(q[:, k, :1] * present[k] + q[:, k, 1:] * absent[k], dim=1)
            loss = loss + scorer((seen + seen * v).relu()).mean()
        hard = torch.where((q[..., 1] > 0.5)[..., None], present, absent)
        projected = self.project(hard.flatten(1))
        return loss + 0.01 * self.joint_scorer((projected + projected * u).relu()).mean()


def seconds(run: Callable[[], Any], repeats: int = 3) -> float:
    """Median CPU time; what takes more than five seconds runs once."""
    took = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        took.append(time.process_time() - began)
        if took[-1] > 5:
            break
    return statistics.median(took)


def speed() -> list[str]:
    """The published head's loop and every method of inference, one thread."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    x = torch.randn(64, 2048)
    head = PublishedHead()
    logits = [torch.zeros(64, 200, requires_grad=True), torch.zeros(64, 112, 2, requires_grad=True)]
    optimizer = torch.optim.Adam(logits, lr=0.1)

    def step() -> None:
        optimizer.zero_grad()
        head(x, *logits).backward()
        optimizer.step()

    blocks = concept_blocks(112)
    vectors = (torch.rand(200, 112) < 0.3).float()
    settings = {"dim": 2048, "num_classes": 200, "blocks": blocks, "hidden": 512}
    model = EnergyBottleneck(**settings).eval().requires_grad_(False)
    of_classes = EnergyBottleneck(**settings, vectors=vectors).eval().requires_grad_(False)
    released = ReleasedEnergyBottleneck(**settings).eval().requires_grad_(False)
    steps = released_inference(released.released_energies(x))[2]
    published = seconds(step) * steps
    lines = ["| inference | seconds per batch of 64 | times faster |", "| --- | --- | --- |"]
    lines.append(f"| published head, {steps} steps (what its stop rule makes of these weights) | {published:.2f} | 1 |")
    rows: dict[str, Callable[[], Any]] = {
        "auto (default), a concept vector per class": lambda: of_classes.infer(x),
        "auto (default), concept vectors of pictures": lambda: model.infer(x),
        **{m: lambda m=m: model.infer(x, method=m) for m in METHODS if m not in ("auto", "enumerate")},
        "released, by inner products": lambda: released.infer(x),
    }
    for name, run in rows.items():
        took = seconds(run)
        lines.append(f"| {name} | {took:.4f} | {published / took:.0f} |")
        print(lines[-1], flush=True)
    ess = float(model.infer(x, method="importance").ess.median())
    return [*lines, "", f"Median effective samples of importance sampling: {ess:.1f} of 256."]


def load(overrides: list[str]) -> tuple[Any, Any, Any, Any]:
    """Configuration, encoded paper birds, their concept bank, their encoder."""
    config.register()
    with hydra.initialize_config_dir(str(config.CONFIGS), version_base="1.3"):
        cfg = hydra.compose("train", ["method=energy", "dataset=birds", "trainer.progress=false", *overrides])
        config.choose_encoder(cfg)
    set_up_logging()
    images, encoder = read_images(cfg.dataset, Path(cfg.cache)), load_encoder(cfg.encoder)
    encode_text = text_encoder(encoder, Path(cfg.cache), False)
    bank = candidate_bank(create_method(cfg.method).concepts_from, cfg, images, encoder, encode_text)
    _, data = encode_splits(images, encoder, Encoding.of(cfg), ("train", "val", "test"))
    return cfg, data, bank, encoder


def estimators(cfg: Any, data: Any, bank: Any) -> list[str]:
    """Every method against enumeration, on the concepts of four groups."""
    few = [k for k, c in enumerate(bank.concepts) if c.group in list(birds.ATTRIBUTES)[:4]]
    method = create_method({"name": "energy", "joint_weight": 1.0})
    model, _ = fit_method(method, data, bank.take(few), 1.0, seed=cfg.seed, trainer=cfg.trainer)
    x = data.test.x
    exact = model.infer(x, method="enumerate")
    lines = [
        "| method | error of p(concept) | error of p(class) | energy above the lowest | seconds for 1,000 pictures |"
    ]
    lines += ["| --- | --- | --- | --- | --- |"]
    for name, method, more in (("direct", "direct", {}), ("importance, 256", "importance", {}),
                               ("importance, 1,024", "importance", {"samples": 1024}),
                               ("gibbs, 50 sweeps", "gibbs", {}), ("gibbs, 400 sweeps", "gibbs", {"sweeps": 400}),
                               ("icm", "icm", {}),
                               ("relaxed (mean field)", "relaxed", {}), ("enumerate", "enumerate", {})):  # fmt: skip
        found = model.infer(x, method=method, **more)
        errors = [float((getattr(found, f"{k}_probability") - getattr(exact, f"{k}_probability")).abs().mean())
                  for k in ("concept", "class")]  # fmt: skip
        above = float((found.energy - exact.energy).mean())
        took = seconds(lambda: model.infer(x, method=method, **more), 1) * 1000 / len(x)  # noqa: B023
        lines.append(f"| {name} | {errors[0]:.4f} | {errors[1]:.4f} | {above:.3f} | {took:.2f} |")
    return lines


def breasts(model: EnergyBottleneck, data: Any, **settings: Any) -> dict[str, float]:
    """Test birds of the species whose belly has the colour of the breast; the belly is told."""
    typical = birds.typical_attributes()
    coupled = torch.from_numpy(typical[:, 0] == typical[:, 1])[data.test.y]
    x, concepts = data.test.x[coupled], data.test.concepts[coupled]
    free = model.infer(x, **settings)
    breast, belly = slice(0, 6), slice(6, 12)
    true_belly = concepts[:, belly].argmax(1)
    true_breast = concepts[:, breast].argmax(1)
    found = {"breast before": float((free.concept_probability[:, breast].argmax(1) == true_breast).float().mean())}
    for name, told in (("truth", true_belly), ("another", (true_belly + 1) % 6)):
        clamp = torch.full_like(concepts, float("nan"))
        clamp[:, belly] = one_hot(told, 6).float()
        after = model.infer(x, clamp=clamp, **settings).concept_probability[:, breast]
        before = free.concept_probability[:, breast].gather(1, told[:, None])
        moved = (after.gather(1, told[:, None]) - before)[before < 0.999]  # what is certain cannot rise
        found[f"follows {name}"] = float((moved > 0).float().mean())
        if name == "truth":
            found["breast after"] = float((after.argmax(1) == true_breast).float().mean())
            found["free to move"] = float((before < 0.999).float().mean())
    return found


def conditionals(model: EnergyBottleneck, data: Any) -> dict[str, float]:
    """Mean absolute errors of p(concept | class) and p(concept | concept, class) against 4,000 birds per species."""
    attributes, labels, _ = birds.sample("birds", "train", 4000, seed=77)
    truth = from_labels(torch.from_numpy(birds.concepts_of(attributes)), torch.from_numpy(labels), 20)
    counted = from_labels(data.train.concepts, data.train.y, 20)
    found = {}
    for name, mine in (("energy", from_joint(model.joint())), ("counted", counted)):
        given = truth.concept_given_class()
        found[f"{name} p(c|y)"] = float((mine.concept_given_class() - given).abs().mean())
        errors = [(mine.pairs_given_class(m) - truth.pairs_given_class(m))[given[m] > 0.1] for m in range(20)]
        found[f"{name} p(c|c',y)"] = float(torch.cat(errors).abs().nanmean())
    return found


def mlp_curve(model: Any, data: Any, seed: int) -> dict[str, float]:
    """A multi-layer perceptron from the concepts' probabilities to the class, in place of the linear head."""
    activations = {name: model.activations(split.x) for name, split in data.splits.items()}
    mlp = MLPClassifier((256,), early_stopping=True, random_state=seed).fit(
        activations["train"].numpy(), data.train.y.numpy()
    )
    column = {name: k for k, name in enumerate(data.concept_names)}
    groups = [[column[name] for name in group] for group in data.concept_groups.values()]

    def answer(told: Tensor) -> tuple[Tensor, Tensor]:
        probability = told.where(~told.isnan(), activations["test"])
        return torch.from_numpy(mlp.predict_proba(probability.numpy())), probability

    return intervention_curve(answer, data.test.concepts, data.test.y, groups).metrics()


def paper_birds(overrides: list[str]) -> list[str]:
    """Five seeds of everything."""
    cfg, data, bank, _ = load(overrides)
    seen: dict[str, dict[str, list[float]]] = {}

    def note(name: str, values: dict[str, float]) -> None:
        for key, value in values.items():
            seen.setdefault(name, {}).setdefault(key.removeprefix("test/"), []).append(value)

    methods: dict[str, dict[str, Any]] = {"energy": {}, "energy, released": {"fidelity": "released"}}
    methods |= {f"supervised, {t}": {"training": t} for t in ("independent", "sequential", "joint")}
    for seed in SEEDS:
        data = replace(data, seed=seed)
        for name, settings in methods.items():
            kind = name.split(",")[0]
            model, used = fit_method(
                create_method({"name": kind, **settings}), data, bank, 1.0, seed=seed, trainer=cfg.trainer
            )
            note(name, evaluate_split(model, used, data, "test"))
            if kind == "energy":
                note(name, conditionals(model, data))
            if name.endswith("sequential"):
                note("supervised, sequential, MLP head", mlp_curve(model, data, seed))
            print(seed, name, flush=True)

    def table(keys: dict[str, str]) -> list[str]:
        rows = [["", *keys.values()], ["---"] * (len(keys) + 1)]
        for name, values in seen.items():
            if any(key in values for key in keys):
                rows.append([name, *(_mean(values.get(key)) for key in keys)])
        return ["| " + " | ".join(row) + " |" for row in rows]

    told = (0, 10, 30, 50, 70, 100)
    return [
        f"{len(data.train)} training and {len(data.test)} test pictures, encoder {Path(cfg.encoder.model).name}; mean "
        "and standard deviation of 5 seeds.", "", "Class accuracy with a share of the concept groups told:", "",
        *table({**{f"intervention_accuracy_{r}": f"{r} %" for r in told}, "intervention_area": "area"}), "",
        "Accuracy of the concepts that were not told:", "",
        *table({f"intervention_others_{r}": f"{r} %" for r in told[:-1]}), "",
        "Without a word told:", "",
        *table({"accuracy": "class", "accuracy_leaky": "class, leaky", "ece": "ECE", "concept_accuracy": "concepts",
                "all_concepts_accuracy": "all of a picture's", "concept_ece": "concept ECE",
                "concept_accuracy_direct": "by own evidence"}), "",
        "Mean absolute error of conditional probabilities against the generator's (counted: in the training pictures):",
        "", *table({f"{w} {q}": f"{w}: {q}" for w in ("energy", "counted") for q in ("p(c|y)", "p(c|c',y)")}), "",
        "Estimators against enumeration (four groups, 21 concepts, joint weight 1):", "", *estimators(cfg, data, bank),
    ]  # fmt: skip


def breasts_by_estimator(overrides: list[str]) -> list[str]:
    """Do breasts follow bellies, by estimators of rising cost? Five seeds."""
    cfg, data, bank, _ = load(overrides)
    about = (
        "The belly is told, of the species whose belly goes with the breast. Share of the birds for which the "
        'probability that the breast has the told colour rises (of those where it was below 0.999, "free to move"), '
        "told the truth and told another colour; accuracy of the breast before and after:"
    )
    ways: dict[str, dict[str, Any]] = {"auto (default: 1,024 samples)": {}, "auto, 256 samples": {"samples": 256},
                                       "gibbs, 50 sweeps": {"method": "gibbs"}}  # fmt: skip
    seen: dict[str, dict[str, list[float]]] = {name: {} for name in ways}
    for seed in SEEDS:
        data = replace(data, seed=seed)
        model, _ = fit_method(create_method({"name": "energy"}), data, bank, 1.0, seed=seed, trainer=cfg.trainer)
        for name, settings in ways.items():
            for key, value in breasts(model, data, **settings).items():
                seen[name].setdefault(key, []).append(value)
    keys = ["follows truth", "follows another", "breast before", "breast after", "free to move"]
    lines = [about, "", "|  | " + " | ".join(keys) + " |", "| --- " * (len(keys) + 1) + "|"]
    return lines + [
        f"| {name} | " + " | ".join(_mean(found[key]) for key in keys) + " |" for name, found in seen.items()
    ]


def _mean(values: list[float] | None) -> str:
    if not values:
        return ""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {spread:.3f}"


def main(arguments: list[str]) -> None:
    """Run one part and write its page."""
    part, *overrides = arguments or ["speed"]
    parts = {"speed": lambda _: speed(), "birds": paper_birds, "breasts": breasts_by_estimator}
    lines = parts[part](overrides)
    name = part + ("_other_encoder" if any("encoder" in o for o in overrides) else "")
    about = (
        f"date: {datetime.date.today()}, python {platform.python_version()}, torch {torch.__version__}, one CPU thread"
    )
    command = "python benchmarks/energy.py " + " ".join([part, *(o for o in overrides if "=" in o and "/" not in o)])
    page = "\n".join(
        [f"# Energy-based bottlenecks: {name.replace('_', ' ')}", "", about + f"; `{command.strip()}`", "", *lines]
    )
    (RESULTS / f"energy_{name}.md").write_text(page + "\n")
    print(page)


if __name__ == "__main__":
    main(sys.argv[1:])
