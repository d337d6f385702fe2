"""``python -m cbm intervene``: accuracy after questions about concepts, by every policy, for finished runs."""

import json
import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cbm.concepts import ConceptBank
from cbm.data import Split
from cbm.editing import fit_concept_probe, load_source_card, source_covariance, tell_in_turn, to_logits
from cbm.editing.asking.policies import policies_for
from cbm.editing.asking.propagation import beyond_labels
from cbm.editing.asking.questions import QuestionCurve, accuracy, ask_in_turn, check_policy
from cbm.errors import UserError, did_you_mean
from cbm.files import write_atomically
from cbm.files.parsing import read_table
from cbm.layers import ConceptBottleneck, is_many, require_linear
from cbm.layers.probe import LinearProbe
from cbm.metrics.answers import noisy_answers
from cbm.metrics.evaluate import known_concepts, value_layout
from cbm.metrics.intervention import told_together
from cbm.metrics.multilabel import auroc
from cbm.trained import TrainedModel, load

if TYPE_CHECKING:  # needs the extra 'llm'
    from cbm.concepts.llm.endpoint import Endpoint
    from cbm.concepts.llm.vision import VisionExpert

log = logging.getLogger("cbm")

TOLD_WRONG = "told wrong"
"""The curve of a random order in which every answer is wrong: a model that follows its concepts loses by it."""


def question_curves(
    run: Path,
    cache: Path,
    *,
    policies: list[str] | None,
    questions: int | None = None,
    noise: float = 0.0,
    answers: Path | None = None,
    expert: "Endpoint | None" = None,
    propagate: bool = False,
    costs: dict[str, float] | None = None,
    seed: int = 0,
) -> dict[str, QuestionCurve]:
    """Accuracy on the test images of a run after each question; also written to ``interventions.json`` in the run.

    Args:
        run: directory of a finished run on a data set with concept labels.
        cache: folder of the feature store.
        policies: names of policies in ``cbm.editing.asking.policies``; by default all that the model knows.
        questions: number of questions per image; by default one about every group.
        noise: share of the answers that are wrong; a number is off by this share of its standard deviation.
        answers: CSV file with a column ``picture`` and a column per concept (1, 0, empty; numbers in their unit),
            which answers instead of the truth.
        expert: vision-language model that answers instead of the truth, and its budget for all policies.
        propagate: whether concepts correlated with an answer are updated too (``cbm.editing.asking.propagation``).
        costs: cost of a question about a concept or group, by name; other questions cost 1.
        seed: random seed for the noise and for the ``random`` policy.

    Returns:
        The curve of every policy, by name; and ``TOLD_WRONG``, where the truth is what answers.

    Raises:
        UserError: the run or a policy does not exist, the model has no concepts or no linear head, no concept has
            labels, the file of answers does not fit, or the expert does not answer or has used its budget.
    """
    for name in policies or ():
        check_policy(name)
    if not 0 <= noise < 1:
        raise UserError(f"--noise {noise}: expected a share from 0 to 1")
    trained = load(run)
    path = trained.path
    if isinstance(trained.model, LinearProbe):
        if answers is not None or expert is not None or propagate or costs:
            raise UserError(
                f"run '{path}' has no concepts: its features are edited by probes, by the truth and in a random order; "
                "--answers, --expert, --propagate and --cost need a bottleneck, such as method=labo"
            )
        return {"random": probe_curve(trained, cache, questions=questions, noise=noise, seed=seed)}
    model, bank = require_linear(trained.model, trained.bank), trained.bank
    assert bank is not None
    dataset, data = trained.read(("test",), cache=cache)
    truth, groups = known_concepts(bank, data.test, data)
    if bool(truth.isnan().all()):
        raise UserError(f"data set '{dataset.name}' knows the truth of no concept of run '{path}'")
    layout = value_layout(bank, data)
    if expert is not None and layout.numbers:
        log.info("the expert answers yes or no: it is not asked about %d numbers", len(layout.numbers))
        truth[:, layout.numbers] = torch.nan
    units = told_together(truth, list(groups.values()))
    asked = None if expert is None else _vision_expert(expert, dataset.splits["test"], bank, cache, truth)
    given = asked or noisy_answers(truth, noise, seed, list(groups.values()), layout.ordered, layout.numbers)
    if answers is not None:
        given = read_answers(answers, data.test.names, bank)
    covariance, correlated = None, propagate and not (model.correlation is None and model.covariance is None)
    if propagate and not correlated:
        covariance = source_covariance(_within(model, trained, cache))
    price = _costs(costs or {}, units, bank, groups)

    def curve(policy: str, given: "Tensor | VisionExpert") -> QuestionCurve:
        return ask_in_turn(
            model, data.test.x, data.test.y, given, units, policy, covariance=covariance, correlated=correlated,
            truth=truth, questions=questions, costs=price, seed=seed, quality=label_quality if model.many else accuracy,
        )  # fmt: skip

    curves = {name: curve(name, given) for name in policies or policies_for(model)}
    if answers is None and asked is None:  # a model that follows what it is told must lose by this
        wrong = noisy_answers(truth, 1.0, seed, list(groups.values()), layout.ordered, layout.numbers)
        curves[TOLD_WRONG] = curve("random", wrong)
    if model.many:
        curves = {name: replace(curve, measure="auroc_macro") for name, curve in curves.items()}
    if asked is not None:
        log.info(asked.summary())
    write_curves(path, curves)
    return curves


def _vision_expert(expert: "Endpoint", split: Split, bank: ConceptBank, cache: Path, truth: Tensor) -> "VisionExpert":
    from cbm.concepts.llm.vision import VisionExpert

    return VisionExpert(expert, split.images, bank.texts, cache, truth)


def write_curves(path: Path, curves: dict[str, QuestionCurve]) -> None:
    """Write ``interventions.json`` of a run."""
    content = {
        name: {curve.measure: curve.accuracy.tolist(), "cost": curve.cost.tolist(), "area": curve.area}
        for name, curve in curves.items()
    }
    write_atomically(path / "interventions.json", json.dumps(content, indent=1).encode())


def probe_curve(trained: TrainedModel, cache: Path, *, questions: int | None, noise: float, seed: int) -> QuestionCurve:
    """Interventions on a classifier of features, through probes that are fitted on the validation images.

    Args:
        trained: the trained model.
        cache: folder of the feature store.
        questions: number of questions per image; by default one about every group.
        noise: share of the answers that are wrong.
        seed: random seed for the noise and for the order of the questions.

    Raises:
        UserError: the data set has no concept labels.
    """
    path, model = trained.path, trained.model
    dataset, data = trained.read(("val", "test"), cache=cache)
    seen, truth = data.val.concepts, data.test.concepts
    if seen is None or truth is None:
        raise UserError(f"data set '{dataset.name}' knows no concepts to tell")
    steps = [spec.columns for spec in dataset.specs if spec.kind == "ordinal"]
    probe = fit_concept_probe(data.val.x, seen, data.test.x, truth)
    log.info("'%s' has no concepts: its features are edited by probes of %d concepts, mean AUROC %.3f on test pictures",
             path, len(probe.bias), float(probe.auroc.nanmean()))  # fmt: skip
    names = dataset.concept_names
    grouped, ordered = (
        [[names.index(name) for name in group] for group in each] for each in (dataset.concept_groups.values(), steps)
    )
    together = grouped + ordered
    alone = set(range(len(names))) - {k for group in together for k in group}
    units = told_together(truth, together + [[k] for k in sorted(alone)])
    curve = tell_in_turn(
        model, probe, data.test.x, data.test.y, noisy_answers(truth, noise, seed, grouped, ordered), units,
        questions=questions, seed=seed, quality=label_quality if is_many(model) else accuracy,
    )  # fmt: skip
    curve = replace(curve, measure="auroc_macro") if is_many(model) else curve
    write_curves(path, {"random": curve})
    return curve


def _within(model: ConceptBottleneck, trained: TrainedModel, cache: Path) -> Tensor:
    """How the logits of concepts differ between images of the same class, or beyond what labels tell, ``[M, K]``, on
    validation images."""
    if not model.many:
        card = load_source_card(trained.path / "source_card.safetensors")
        a = to_logits(model, model.activations(card.x))
        means = torch.stack([a[card.y == c].mean(dim=0) for c in range(len(trained.classes))])
        return a - means[card.y]
    _, data = trained.read(("val",), cache=cache, as_trained=True)
    return beyond_labels(to_logits(model, model.activations(data.val.x)), data.val.y)


def label_quality(logits: Tensor, y: Tensor) -> Tensor:
    """Mean AUROC of labels ``[N, L]``, 0-d."""
    return auroc(logits, y).nanmean()


def read_answers(file: Path, names: list[str], bank: ConceptBank) -> Tensor:
    """Read the answers of an expert, ``[N, K]``: 1, 0, or NaN for no answer; of a number, the number as the model's
    head reads it, in standard deviations of the training images.

    Args:
        file: CSV file with a column ``picture`` and a column per concept; numbers stand there in their unit.
        names: names of the N images.
        bank: the K concepts.

    Raises:
        UserError: the file does not exist, an image or concept is unknown, or an entry is not 0, 1 (of a
            number: not a finite number) or empty.
    """
    columns, rows = read_table(file)
    if not rows or "picture" not in columns:
        raise UserError(f"'{file}' has no column 'picture', or no rows")
    row_of, column_of = {name: n for n, name in enumerate(names)}, {text: k for k, text in enumerate(bank.texts)}
    found = torch.full((len(names), len(bank)), float("nan"))
    for number, row in enumerate(rows, start=2):
        if row["picture"] not in row_of:
            nearest = did_you_mean(str(row["picture"]), names)
            raise UserError(f"'{file}' line {number}: no picture '{row['picture']}' in the test split: {nearest}")
        for text, value in row.items():
            if text == "picture":
                continue
            if text not in column_of:
                raise UserError(f"'{file}': no concept '{text}' in this model: {did_you_mean(str(text), bank.texts)}")
            about = bank.concepts[column_of[text]].provenance.get("number")
            if about and (value or "").strip():
                told = (_number(f"'{file}' line {number}: '{text}'", value, about["unit"]) - about["mean"]) / about[
                    "sd"
                ]
                found[row_of[row["picture"]], column_of[text]] = told
                continue
            if (value or "").strip() not in ("", "0", "1"):
                raise UserError(f"'{file}' line {number}: '{text}' is '{value}'; expected 1, 0 or nothing")
            if (value or "").strip():
                found[row_of[row["picture"]], column_of[text]] = float(value)
    return found


def _number(where: str, text: str, unit: str) -> float:
    """A cell as a number in its unit.

    Raises:
        UserError: it is none.
    """
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where} is '{text}'; expected a number{f' of {unit}' if unit else ''}, or nothing")
    return number


def _costs(named: dict[str, float], units: list[list[int]], bank: ConceptBank, groups: dict[str, list[int]]) -> Tensor:
    """Cost of a question about every group."""
    known = {name: unit for name, unit in groups.items() if unit} | {
        bank.texts[unit[0]]: unit for unit in units if len(unit) == 1
    }
    price = torch.ones(len(units))
    for name, cost in named.items():
        if name not in known:
            raise UserError(f"no concept or group '{name}' to ask about: {did_you_mean(name, list(known))}")
        price[units.index(list(known[name]))] = cost
    return price
