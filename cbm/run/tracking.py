"""Log a run to Weights & Biases, with model and bank as artifacts; offline if there is no login."""

import logging
import os
import re
import secrets
from pathlib import Path
from typing import Any

import torch

from cbm.concepts.bank import ConceptBank
from cbm.data import FeatureData
from cbm.data.images import Images, NoImage
from cbm.files import write_atomically
from cbm.layers import ConceptBottleneck, predict_logits, thresholds_of
from cbm.metrics.sparsity import top_concepts
from cbm.report.labels import label_rows, worst_rows
from cbm.report.result import RunResult

log = logging.getLogger(__name__)

EXAMPLES = 16  # pictures of either kind
MATRIX_CLASSES = 100
"""Most classes of a confusion matrix: W&B draws one row of a table per cell, 10,000 at most."""
MOST_METADATA = 100  # W&B refuses an artifact with more keys
SIDE = 224  # pixels of their longer side


def create_wandb_logger(
    path: Path, settings: dict[str, Any], *, project: str, entity: str | None, tags: list[str]
) -> Any:
    """Lightning's W&B logger, offline unless there is a login or ``WANDB_MODE`` is set.

    An interrupted training that goes on continues its W&B run (``run_id``), and does not begin another one.

    Args:
        path: folder that the logger writes to.
        settings: configuration of the run.
        project: W&B project.
        entity: W&B user or team, or None.
        tags: tags of the run.
    """
    import wandb
    from lightning.pytorch.loggers import WandbLogger

    os.environ.setdefault("WANDB_SILENT", "true")
    mode: dict[str, Any] = {}
    if "WANDB_MODE" not in os.environ and not wandb.login(prompt=False, verify=False):
        mode = {"mode": "offline"}
        log.info("W&B: no login found, logging offline (wandb sync %s/wandb/offline-run-* uploads it later)", path)
    log.info("W&B gets the test images that are shown, the names of files, and the settings with their paths")
    return WandbLogger(
        name=path.name,
        project=project,
        entity=entity,
        tags=tags,
        save_dir=str(path),
        config=settings,
        id=run_id(path),
        resume="allow",
        **mode,
    )


def run_id(path: Path) -> str:
    """The id of the W&B run of a run directory, kept there for as long as the directory is that run's.

    A sweep's agent says which id it expects (``WANDB_RUN_ID``); that one is taken.

    Args:
        path: the run directory.
    """
    file = path / "wandb" / "id.txt"
    kept = file.read_text(encoding="utf-8", errors="replace").strip() if file.is_file() else ""
    name = os.environ.get("WANDB_RUN_ID") or kept
    if not re.fullmatch(r"[\w-]{1,64}", name):
        name = secrets.token_hex(4)
    if name != kept:
        file.parent.mkdir(exist_ok=True)
        write_atomically(file, name.encode())
    return name


def log_results(logger: Any, result: RunResult) -> None:
    """Log the results of a finished run, with its model and bank as artifacts.

    The metrics become the summary of the W&B run; top concepts per class and explained test images become tables, and
    of up to 100 classes there is a confusion matrix. A run of several labels an image has a table of its labels
    instead, and its examples are the worst mistakes of every label.

    Args:
        logger: logger made by ``create_wandb_logger``.
        result: the finished run.
    """
    import wandb

    run, path, metrics, bank = logger.experiment, result.path, result.metrics, result.bank
    run.summary.update(metrics)
    if result.bottleneck is not None and bank is not None:
        what = "label" if result.data.many else "class"
        run.log({"concepts": concept_table(result.bottleneck, bank, result.data.classes, what)})
        explained = label_examples if result.data.many else example_table
        examples = explained(result.bottleneck, bank, result.data, result.dataset.splits["test"].images)
        captions = [f"{row[2]}, called {row[3]} ({row[4]:.0%}): {row[5]}" for row in examples.data]
        seen = [wandb.Image(row[0].image, caption=each) for row, each in zip(examples.data, captions) if row[0]]
        run.log({"examples": examples, "example_pictures": seen})
    if result.data.many:
        run.log({"labels": label_summary(result)})
    elif len(result.data.classes) <= MATRIX_CLASSES:
        run.log({"confusion_matrix": confusion_matrix(result)})
    for name, axis, points in curves(metrics):
        measured = "auroc" if name.startswith("auroc") else "accuracy"
        table = wandb.Table(columns=[axis, measured], data=points)
        run.log({name: wandb.plot.line(table, axis, measured, title=name.replace("_", " "))})
    if (path / "report.html").is_file():
        run.log({"report": wandb.Html((path / "report.html").read_text(encoding="utf-8"))})
    metadata = dict(list(metrics.items())[:MOST_METADATA])  # the summary has all
    artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=metadata)
    artifact.add_file(str(path / "model.safetensors"))
    artifact.add_file(str(path / "config.yaml"))
    run.log_artifact(artifact)
    if (path / "bank").is_dir():
        concepts = wandb.Artifact(f"bank-{run.id}", type="concept-bank")
        concepts.add_dir(str(path / "bank"))
        run.log_artifact(concepts)
    run.finish()


def confusion_matrix(result: RunResult) -> Any:
    """A chart: how many test images of every class were called each class."""
    import wandb

    test = result.data.test
    return wandb.plot.confusion_matrix(
        y_true=test.y.tolist(),
        preds=predict_logits(result.model, test.x).argmax(dim=1).tolist(),
        class_names=result.data.classes,
        title="Confusion matrix of the test images",
    )


def label_summary(result: RunResult) -> Any:
    """A table with a row for every label, as in ``label_metrics.csv``."""
    import wandb

    rows = label_rows(result)
    table = wandb.Table(columns=list(rows[0]))
    for row in rows:
        values = {**row, "concepts": "; ".join(row["concepts"])}
        table.add_data(*(None if value != value else value for value in values.values()))
    return table


def concept_table(model: ConceptBottleneck, bank: ConceptBank, classes: list[str], what: str = "class") -> Any:
    """A table with the ten most important concepts of every class.

    Args:
        model: the bottleneck.
        bank: the concepts of its columns.
        classes: C class names.
        what: what these are: class, or label.
    """
    import wandb

    table = wandb.Table(columns=[what, "rank", "concept", "weight", "importance"])
    weights, importance = model.weights(), model.importance()
    for row, columns in enumerate(top_concepts(model, 10).tolist()):
        for rank, k in enumerate(columns, start=1):
            table.add_data(classes[row], rank, bank.texts[k], float(weights[row, k]), float(importance[row, k]))
    return table


def example_table(model: ConceptBottleneck, bank: ConceptBank, data: FeatureData, pictures: Images) -> Any:
    """A table of explained test images: the most confident mistakes, then correct decisions by falling confidence.

    Args:
        model: the bottleneck.
        bank: the concepts of its columns.
        data: encoded splits, of which the test split is shown.
        pictures: the test images.
    """
    import wandb

    x, y = data.test.x, data.test.y
    confidence, predicted = model.logits(x).softmax(dim=1).max(dim=1)
    order = confidence.argsort(descending=True, stable=True)
    wrong = order[(predicted != y)[order]][:EXAMPLES]
    right = order[(predicted == y)[order]]
    rows = torch.cat([wrong, right[torch.arange(min(EXAMPLES, len(right))) * len(right) // EXAMPLES]])
    table = wandb.Table(columns=["picture", "name", "class", "called", "confidence", "because", "although"])
    for row, values in zip(rows.tolist(), model.contributions(x[rows].float(), predicted[rows])):
        known = [f"{bank.texts[k]} {values[k]:+.2f}" for k in values.argsort(descending=True).tolist()]
        table.add_data(
            shown(pictures, row),
            data.test.names[row],
            data.classes[int(y[row])],
            data.classes[int(predicted[row])],
            float(confidence[row]),
            "; ".join(known[:5]),
            "; ".join(known[:-4:-1]),
        )
    return table


def label_examples(model: ConceptBottleneck, bank: ConceptBank, data: FeatureData, pictures: Images) -> Any:
    """A table of explained mistakes, two a label: the highest logit of a label that is not there, and the lowest of one
    that is.

    Args:
        model: the bottleneck.
        bank: the concepts of its columns.
        data: encoded splits, of which the test split is shown.
        pictures: the test images.
    """
    import wandb

    x, y = data.test.x, data.test.y
    logits = predict_logits(model, x)
    above = logits - thresholds_of(model, y.shape[1])
    table = wandb.Table(columns=["picture", "name", "label", "called", "probability", "because", "although"])
    for label, name in enumerate(data.classes[:EXAMPLES]):
        for row, called in zip(worst_rows(above[:, label], y[:, label]), ("present", "absent")):
            if row is None:
                continue
            values = model.contributions(x[[row]].float(), torch.tensor([label]))[0]
            order = values.argsort(descending=called == "present").tolist()
            known = [f"{bank.texts[k]} {values[k]:+.2f}" for k in order]
            table.add_data(
                shown(pictures, row),
                data.test.names[row],
                name,
                called,
                float(logits[row, label].sigmoid()),
                "; ".join(known[:5]),
                "; ".join(known[:-4:-1]),
            )
    return table


def shown(pictures: Images, row: int) -> Any:
    """A small copy of an image for a table; None where only its features are known."""
    import wandb

    try:
        picture = pictures.open(row, SIDE)
    except NoImage:
        return None
    picture.thumbnail((SIDE, SIDE))
    return wandb.Image(picture)


def curves(metrics: dict[str, float]) -> list[tuple[str, str, list[list[float]]]]:
    """Name, axis and points of the curves in the metrics: over concepts per class, and over concepts set."""
    found = []
    for name, axis, pattern in (
        ("accuracy_at_equal_sparsity", "concepts per class", r"test/accuracy_nec(\d+)_resolved"),
        ("auroc_at_equal_sparsity", "concepts per label", r"test/auroc_macro_nec(\d+)_resolved"),
        ("intervention_curve", "per cent of concepts told", r"test/intervention_accuracy_(\d+)"),
    ):
        points = [[float(match[1]), value] for key, value in metrics.items() if (match := re.fullmatch(pattern, key))]
        if points:
            found.append((name, axis, sorted(points)))
    return found
