"""Concepts learned from images that show them: concept activation vectors.

A concept activation vector (Kim et al., "Interpretability Beyond Feature Attribution", ICML 2018) is the normal of the
hyperplane that parts images with the concept from images without it. Post-hoc concept bottleneck models
(Yuksekgonul et al., ICLR 2023) score an image by its signed distance to that plane, (c.x + b) / |c|.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from cbm.concepts.bank import Concept, ConceptBank, Dropped
from cbm.errors import UserError, did_you_mean
from cbm.files.names import one_form
from cbm.kernels import concept_scores

if TYPE_CHECKING:
    from cbm.data.dataset import Split

log = logging.getLogger(__name__)

FITS = ("svm", "fast", "auto")
FEW = 50
"""Training images with a concept below which ``auto`` takes the difference of means, which few images suffice for."""
Plane = Callable[[list[np.ndarray]], tuple[np.ndarray, float, dict[str, Any]]]
"""From features with and without a concept to the coefficients and offset of a plane, and what to remember of it."""
FEWEST = 4
"""Smallest number of images with and without a concept: two of each to train on, and two of each held out."""


def learn_cavs(
    x: Tensor,
    truth: Tensor,
    names: list[str],
    *,
    encoder: str | None,
    source: str,
    per_concept: int = 100,
    svm_c: float = 0.1,
    seed: int = 0,
    groups: dict[str, list[str]] | None = None,
    fidelity: str = "repaired",
    fit: str = "svm",
    progress: bool = False,
) -> ConceptBank:
    """One linear classifier per concept, on balanced samples of the images: a support vector machine, or the difference
    of two means.

    ``repaired``: features are centred and divided by one number, the root mean square of their values over all N
    images, so that ``svm_c`` means the same for every encoder, and where one side has fewer images its errors weigh
    more, in proportion. ``released``: features as they are and all errors weigh the same, as in the published code.

    Args:
        x: unit-norm features ``[N, D]``.
        truth: concept labels ``[N, A]``: 1 present, 0 absent, anything else unknown.
        names: names of the A concepts.
        encoder: fingerprint of the encoder of ``x``, or None.
        source: origin of the images.
        per_concept: number of training images with the concept, and without it; as many again are held out. If there
            are fewer, half of them are used for training.
        svm_c: cost of an error of the support vector machine, against a wide margin.
        seed: random seed for the draw of images; it is combined with the concept's name, so that other concepts do not
            change the draw.
        groups: names of concepts that exclude each other, by name of the group.
        fidelity: ``repaired`` or ``released``, see above.
        fit: ``svm``; ``fast``, the direction from the mean without the concept to the mean with it, the plane half-way
            (FastCAV, Schmalwasser et al., ICML 2025, which puts the plane through the mean of all images and so needs
            as many with the concept as without); or ``auto``, ``fast`` for concepts with fewer than 50 training images.
        progress: whether a progress bar is shown.

    Returns:
        A bank whose embeddings ``[K, D]`` are the unit normals of the planes and whose scores are balanced accuracies
        on held-out images; the provenance holds the offsets that ``distances`` needs. Concepts with too few images are
        in ``dropped``.

    Raises:
        UserError: a name occurs twice, a setting is out of range, or no concept can be learned.
    """
    if twice := [(name, count) for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"concept '{twice[0][0]}' of '{source}' is there {twice[0][1]} times: names must differ")
    if svm_c <= 0 or per_concept < FEWEST // 2:
        raise UserError(f"svm_c={svm_c} must be above 0 and per_concept={per_concept} at least {FEWEST // 2}")
    if truth.shape != (len(x), len(names)):
        raise ValueError(f"truth is {list(truth.shape)}, expected {[len(x), len(names)]}")
    if fit not in FITS:
        raise UserError(f"concepts.cav.fit={fit}: {did_you_mean(fit, FITS)}")
    x, labels = x.detach().cpu(), truth.detach().cpu().numpy()
    mean, scale = torch.zeros(x.shape[1], dtype=torch.float64), 1.0
    if repaired := fidelity != "released":
        mean = x.mean(dim=0, dtype=torch.float64)
        square = sum(float((part.double() - mean).square().sum()) for part in x.split(8192))
        scale = max((square / max(x.numel(), 1)) ** 0.5, 1e-12)
    group = {name: key for key, members in (groups or {}).items() for name in members}
    concepts, normals, dropped = [], [], []
    for a in track(range(len(names)), "learning concepts", transient=True) if progress else range(len(names)):
        name, column = names[a], labels[:, a]
        found = [np.flatnonzero(column == 1), np.flatnonzero(column == 0)]
        if min(map(len, found)) < FEWEST:
            counts = f"{len(found[0])} pictures with it and {len(found[1])} without"
            dropped.append(Dropped(name, (), f"{counts}: needs {FEWEST} of each or more"))
            continue
        train, held = _halves(found, per_concept, seed, name)
        quick = fit == "fast" or (fit == "auto" and len(train[0]) < FEW)
        plane = _between_means if quick else _machine(svm_c, "balanced" if repaired else None)
        normal, cav = _fit(x, mean, scale, train, held, plane)
        if normal is None:
            dropped.append(Dropped(name, (), "pictures with it look like pictures without it to the encoder"))
            continue
        normals.append(normal)
        concepts.append(Concept(name, (), group.get(name), cav["heldout_accuracy"], {"cav": cav}))
    if not concepts:
        why = f", first: '{dropped[0].text}' ({dropped[0].reason})" if dropped else ""
        raise UserError(f"no concept can be learned from '{source}': all {len(names)} are left out{why}")
    scores = [float(concept.score or 0) for concept in concepts]
    worst = int(np.argmin(scores))
    log.info(
        "concepts: %d CAVs from %s%s; held-out accuracy %.3f on average, worst %.3f for '%s'",
        len(concepts),
        source,
        f" ({len(dropped)} left out)" if dropped else "",
        float(np.mean(scores)),
        scores[worst],
        concepts[worst].text,
    )
    embeddings = torch.from_numpy(np.stack(normals)).float()
    return ConceptBank("cav", source, tuple(concepts), encoder, embeddings, tuple(dropped))


def _halves(found: list[np.ndarray], per_concept: int, seed: int, name: str) -> tuple[list[np.ndarray], ...]:
    """Rows (with, without) to train on and to hold out, drawn without replacement: no image is in both."""
    key = hashlib.blake2b(f"{seed}\n{name}".encode(), digest_size=16).digest()
    generator = np.random.default_rng(int.from_bytes(key, "little"))
    drawn = [generator.permutation(rows)[: 2 * per_concept] for rows in found]
    middle = [(len(rows) + 1) // 2 for rows in drawn]
    return [r[:m] for r, m in zip(drawn, middle)], [r[m:] for r, m in zip(drawn, middle)]


def _fit(
    x: Tensor,
    mean: Tensor,
    scale: float,
    train: list[np.ndarray],
    held: list[np.ndarray],
    plane: Plane,
) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Unit normal ``[D]`` of the plane between ``train[0]`` and ``train[1]``, and what is to be remembered of it."""

    def features(rows: np.ndarray) -> np.ndarray:
        return ((x[torch.from_numpy(rows)].double() - mean) / scale).numpy()

    sides = [features(rows) for rows in train]
    coefficients, offset, about = plane(sides)
    w = coefficients / scale  # [D], in the space of x
    norm = float(np.linalg.norm(w))
    if norm * scale < 1e-9:
        return None, {}
    intercept = float(offset - w @ mean.numpy())

    def decision(side: np.ndarray) -> np.ndarray:
        return side @ coefficients + offset

    m = np.concatenate([decision(side) for side in sides]) / norm  # distances of the training pictures

    def accuracy(present: np.ndarray, absent: np.ndarray) -> float:
        right = decision(present) > 0, decision(absent) <= 0
        return float(np.mean([side.mean() for side in right]))

    return w / norm, {
        "norm": norm,
        "intercept": intercept,
        **about,
        "train_accuracy": accuracy(*sides),
        "heldout_accuracy": accuracy(features(held[0]), features(held[1])),
        "positives": len(train[0]),
        "negatives": len(train[1]),
        "margins": _margins(m),
    }


def _machine(svm_c: float, class_weight: str | None) -> Plane:
    """A linear support vector machine."""

    def plane(sides: list[np.ndarray]) -> tuple[np.ndarray, float, dict[str, Any]]:
        from sklearn.svm import SVC

        machine = SVC(kernel="linear", C=svm_c, class_weight=class_weight)
        machine.fit(np.concatenate(sides), np.repeat([1, -1], [len(side) for side in sides]))
        return machine.coef_[0], float(machine.intercept_[0]), {"svm_c": svm_c}

    return plane


def _between_means(sides: list[np.ndarray]) -> tuple[np.ndarray, float, dict[str, Any]]:
    """The plane half-way between the means, at right angles to what joins them."""
    present, absent = (side.mean(axis=0) for side in sides)
    w = present - absent
    return w, -float(w @ (present + absent)) / 2, {"fit": "fast"}


def _margins(m: np.ndarray) -> dict[str, float]:
    """How far the training images lie from the plane; an empty side counts as 0."""
    above, below = m[m > 0], m[m < 0]
    statistics = {
        "max": m.max(),
        "min": m.min(),
        "mean_positive": above.mean() if len(above) else 0,
        "std_positive": above.std() if len(above) else 0,
        "mean_negative": below.mean() if len(below) else 0,
        "std_negative": below.std() if len(below) else 0,
        "quantile_10": np.quantile(m, 0.1),
        "quantile_90": np.quantile(m, 0.9),
    }
    return {key: float(value) for key, value in statistics.items()}


def distances(bank: ConceptBank, x: Tensor) -> Tensor:
    """Concept scores: the signed distance to a CAV's plane, (c.x + b) / |c|; for a phrase, the similarity c.x.

    Args:
        bank: bank of K concepts with embeddings.
        x: features ``[N, D]`` of the same encoder.

    Returns:
        Scores ``[N, K]``, in the precision and on the device of ``x``.
    """
    cavs = [concept.provenance.get("cav") for concept in bank.concepts]
    offsets = torch.tensor([cav["intercept"] / cav["norm"] if cav else 0.0 for cav in cavs], dtype=torch.float64)
    return concept_scores(x, bank.directions().to(x), beta=offsets.to(x))


def majority_owners(truth: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """The concepts that more than half of a class's labelled images show.

    Args:
        truth: concept labels ``[N, A]``: 1 present, 0 absent, anything else unknown.
        labels: class indices ``[N]``, or labels ``[N, C]``: 1, 0, or NaN if unknown.
        num_classes: number of classes, or of labels, C.

    Returns:
        Which class owns which concept, ``[C, A]`` bool.
    """
    margin = (truth == 1).float() - (truth == 0).float()
    if labels.ndim == 2:
        return (labels == 1).float().T @ margin > 0
    return torch.zeros(num_classes, truth.shape[1]).index_add_(0, labels, margin) > 0


def read_concept_folders(root: Path) -> tuple[list[str], "Split"]:
    """Images that show concepts: ``ROOT/CONCEPT/{positives,negatives}/*.jpg``, or ``ROOT/CONCEPT/*.jpg``.

    In the first layout an image is labelled with its own concept only; in the second all other concepts are absent.

    Returns:
        Names of the A concepts, and N images with ``concepts`` ``[N, A]``: 1, 0, or NaN if unknown; all labels are 0.

    Raises:
        UserError: a folder is missing or has no images, or, in the second layout, there is a single concept.
    """
    from cbm.data.dataset import Split
    from cbm.data.images import ImageFiles, is_ours, list_images

    if not root.is_dir():
        siblings = [p.name for p in root.parent.iterdir() if p.is_dir()] if root.parent.is_dir() else []
        raise UserError(f"no folder of concept pictures '{root}' {did_you_mean(root.name, siblings)}".rstrip())
    folders = sorted(p for p in root.iterdir() if p.is_dir() and is_ours(p.name))
    names = [one_form(folder.name) for folder in folders]
    sides: dict[str, float] = {"positives": 1, "negatives": 0}
    paired = any((folder / side).is_dir() for folder in folders for side in sides)
    if len(folders) < (1 if paired else 2):
        found = f"only '{names[0]}'" if names else "none"
        raise UserError(
            f"'{root}' needs two concept folders or more, found {found}; expected {root}/CONCEPT/*.jpg or "
            f"{root}/CONCEPT/positives/*.jpg and {root}/CONCEPT/negatives/*.jpg"
        )
    files: list[str] = []
    rows: list[np.ndarray] = []
    for a, folder in enumerate(folders):
        parts = {folder / side: value for side, value in sides.items()} if paired else {folder: 1.0}
        for part, value in parts.items():
            if not part.is_dir():
                raise UserError(f"concept '{folder.name}' has no folder '{part}', although others have one")
            pictures = list_images(part)
            if not pictures:
                raise UserError(f"concept '{folder.name}': folder '{part}' has no images")
            row = np.full(len(folders), np.nan if paired else 0, dtype=np.float32)
            row[a] = value
            files += [picture.relative_to(root).as_posix() for picture in pictures]
            rows += [row] * len(pictures)
    return names, Split(ImageFiles(root, files), np.zeros(len(files), dtype=np.int64), np.stack(rows))
