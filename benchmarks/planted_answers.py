"""What being told is worth on planted concepts: ``python benchmarks/planted_answers.py questions|told|region``.

The tables of docs/methods/embedding.md (``questions``: area of every policy, and how often the first question is the
best one) and docs/methods/stochastic.md (``told``: what telling one concept is worth to others; ``region``: the same by
the level of the region). The planted sets are those of the tests, which must lie beside this folder.
"""

import statistics
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS / "methods"), str(TESTS / "helpers"), str(TESTS)]

import test_embedding as vectors  # noqa: E402
import test_stochastic as dependent  # noqa: E402

from cbm.config import TrainerConfig  # noqa: E402
from cbm.editing import ask_in_turn  # noqa: E402
from cbm.editing.asking import propagation  # noqa: E402
from cbm.methods import create_method, fit_method  # noqa: E402
from cbm.methods.stochastic import told_gain  # noqa: E402

SEEDS = range(3)
QUIET = TrainerConfig(progress=False)
COVARIANCES = {
    "copula": {"training": "independent"},
    "global": {"training": "joint", "covariance": "global"},
    "global, penalty .1": {"training": "joint", "covariance": "global", "precision_weight": 0.1},
    "global, frozen": {"training": "joint", "covariance": "global", "frozen": True},
    "amortised": {"training": "joint", "covariance": "amortised"},
}


def questions() -> None:
    """Areas under accuracy over questions, mean of the seeds."""
    (data, bank), units = vectors.planted(), [[k] for k in range(vectors.COUNT)]
    for kind in ("cem", "mix"):
        for weight in (0.0, 1.0):
            settings = {"name": "embedding", "kind": kind, "width": 8, "patience": 8, "max_epochs": 60}
            found: dict[str, list[float]] = {}
            for seed in SEEDS:
                method = create_method(settings | {"policy_weight": weight})
                model, _ = fit_method(method, data, bank, 1.0, seed=seed, trainer=QUIET)
                test = data.test
                for policy in ["random", "ucp", "ectp", "oracle"] + ["learned"] * bool(weight):
                    curve = ask_in_turn(model, test.x, test.y, test.concepts, units, policy, seed=seed)
                    found.setdefault(policy, []).append(curve.area)
                    found.setdefault("all told", []).append(float(curve.accuracy[-1]))
                wrong = ask_in_turn(model, test.x, test.y, 1 - test.concepts, units, "random")
                found.setdefault("all told wrong", []).append(float(wrong.accuracy[-1]))
                if weight:
                    found.setdefault("first is the best", []).append(vectors.agrees(model))
            print(kind, weight, {name: round(statistics.mean(each), 3) for name, each in found.items()}, flush=True)


def told() -> None:
    """What telling one concept is worth, and the correlations, seed by seed."""
    data, bank = dependent.planted()
    for name, more in COVARIANCES.items():
        settings = {"name": "stochastic", "patience": 8, "lr": 0.01, "max_epochs": 60, "samples": 30}
        for seed in SEEDS:
            method = create_method(settings | more)
            model, _ = fit_method(method, data, bank, 1.0, seed=seed, trainer=QUIET)
            r = dependent.correlations(model, data.test.x) if model.correlation is None else model.correlation
            print(name, seed, f"{method.facts['told_gain']:.4f} {r[0, 1]:.3f} {r[2, 3]:.3f}", flush=True)


def region() -> None:
    """The same for one learned covariance, by the level of the region."""
    test, model, solve = dependent.planted()[0].test, dependent.learned("global"), propagation.confidence_region
    p = model.activations(test.x)
    for level in (0.99, 0.9, 0.5, 0.1):
        propagation.confidence_region = lambda *given, level=level: solve(*given, level=level)
        gain = told_gain(
            p,
            test.concepts,
            lambda rows, q, known, a: propagation.follow_covariance(q, known, a, model, test.x[rows]),
            0,
        )
        print(level, f"{gain:.4f}", flush=True)


if __name__ == "__main__":
    {"questions": questions, "told": told, "region": region}[sys.argv[1]]()
