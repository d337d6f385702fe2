"""What is shown about the concepts, and how good the model is beside simpler ones: the first tables of a report."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cbm.files.names import quoted
from cbm.metrics import Integrity
from cbm.report.wording import clip

METRICS = {
    "accuracy": ("Accuracy", "Share of the test pictures that are classified correctly."),
    "accuracy_macro": (
        "Macro",
        "Mean of the accuracy within a class over the classes that have test pictures: every class counts the same.",
    ),
    "accuracy_nec5_resolved": (
        "With 5 concepts per class",
        "Accuracy of a new sparse head that uses five of these concepts per class on average, solved to a certified "
        "optimum (NEC 5).",
    ),
    "accuracy_nec5": (
        "Own head cut to 5",
        "Accuracy when every class may use only its five most important concepts, with the weights it has; the others "
        "are held at their mean (at zero where a picture uses only a few concepts). "
        "With hundreds of concepts any directions classify well, meaningful or not; with five they have to be good.",
    ),
    "accuracy_nec_avg": (
        "Own head cut to 5 to 30, mean",
        "The same, averaged over 5, 10, 15, 20, 25 and 30 concepts per class (those the run asked for).",
    ),
    "ece": (
        "ECE",
        "Expected calibration error: how far the stated probabilities are from the share that is right (15 bins; 0 is "
        "best).",
    ),
}
"""Key in ``metrics.json`` (after ``test/``) to the column's name and what it means."""

OTHER_METRICS = {
    "concept_accuracy": (
        "Concept accuracy",
        "Share of correct yes/no answers about the concepts whose truth is known (cut chosen on the validation split).",
        "{:.1%}",
    ),
    "concept_auroc": (
        "Concept AUROC",
        "How well the score of a concept ranks pictures that show it above those that do not; 0.5 is guessing, 1 is "
        "perfect.",
        "{:.3f}",
    ),
    "grounding_gap_std": (
        "Grounding gap",
        "How much higher a concept scores on the pictures of the classes that own it than on all others, in standard "
        "deviations; near zero, the names have little to do with the scores.",
        "{:z.2f} sd",
    ),
    "all_concepts_accuracy": (
        "All concepts right",
        "Share of the pictures of which every known concept is answered correctly.",
        "{:.1%}",
    ),
    "concept_ece": (
        "Concept ECE",
        "How far the stated probabilities of concepts are from the share that is right (15 bins; 0 is best).",
        "{:.3f}",
    ),
    "concept_accuracy_direct": (
        "Concepts by their own evidence",
        "Concept accuracy when no concept knows of any other, nor of the class.",
        "{:.1%}",
    ),
    "accuracy_strict": ("Accuracy by the concepts alone", "The class is told from the concepts only.", "{:.1%}"),
    "accuracy_leaky": (
        "Accuracy with a look past the concepts",
        "The class is seen in the picture as well: a black-box path around the concepts.",
        "{:.1%}",
    ),
    "residual_share": (
        "Outside the concepts",
        "Share of the residual in what tells the classes apart: it bypasses the concepts.",
        "{:.0%}",
    ),
    "accuracy_concepts_only": ("Accuracy of the concept path", "Without the residual.", "{:.1%}"),
    "accuracy_residual_only": ("Accuracy of the residual", "Without the concepts.", "{:.1%}"),
    "nec": ("Concepts per class", "Concepts with a weight other than zero, mean over the classes.", "{:.0f}"),
    "nec_effective": (
        "Effective concepts per class",
        "How many equally strong concepts would spread a class's weight as widely.",
        "{:.1f}",
    ),
    "flipped_without_5": (
        "Decisions that change without their five longest bars",
        "The five concepts that say most for a decision are held at their average; next line: as many random others as "
        "have bars of the same total length. If both change as few, the decision is spread over many concepts.",
        "{:.0%}",
    ),
    "flipped_without_random": ("The same without random others", "Bars of the same total length.", "{:.0%}"),
    "concepts_needed": (
        "Concepts needed",
        "How many concepts, the longest bars first, it takes to reach the decision from the average picture (median).",
        "{:.0f}",
    ),
    "reader_accuracy": (
        "Reader of five words",
        "How often somebody who sees only the five words an image gets, and knows from text alone what words mean, "
        "names the class. Nothing is trained.",
        "{:.1%}",
    ),
    "name_value": (
        "Name value",
        "Reader accuracy above that of exchanged names: what the names are worth, in points. Only names can earn it.",
        "{:+.1%}",
    ),
    "code_zero_shot": (
        "Code zero-shot (no evidence)",
        "The five words read by the text vectors that made their directions. Random directions do as well (next line), "
        "so it says nothing about names.",
        "{:.1%}",
    ),
    "code_zero_shot_random": (
        "Code zero-shot of random directions",
        "The same for as many random directions with the covariance of the words.",
        "{:.1%}",
    ),
    "truth_auroc_within": (
        "Concept AUROC within a class",
        "The same among images of one class only, where the class is no help; 0.5 is guessing.",
        "{:.3f}",
    ),
    "code_l0": ("Words per picture", "Words in the sum that stands for a picture, mean.", "{:.1f}"),
    "code_r2": (
        "Said by the words",
        "Share of the pictures' differences from their mean that the words say; the rest no word explains. No evidence "
        "for names: random directions like the pictures say more.",
        "{:.0%}",
    ),
    "code_cosine": (
        "Cosine of picture and sum",
        "How near the sum of words, with the mean, comes to a picture.",
        "{:.3f}",
    ),
    "code_cosine_mean_only": (
        "Cosine without any word",
        "The same for the mean alone: where this scale begins.",
        "{:.3f}",
    ),
    "code_used": ("Words in use", "Share of the words that some picture uses.", "{:.0%}"),
    "image_l0": (
        "Concepts per picture",
        "Numbers other than zero among what the concepts add to the logit of the predicted class, mean over the "
        "pictures.",
        "{:.1f}",
    ),
    "image_participation": (
        "Effective concepts per picture",
        "How many equally large contributions would be as spread out as those of a picture.",
        "{:.1f}",
    ),
    "image_hoyer": (
        "Hoyer sparsity",
        "How few concepts make up the contributions of a picture: 0 if all are equally large, 1 if there is only one.",
        "{:.2f}",
    ),
    "used_concept_precision": (
        "Used and true",
        "Share of the concepts a picture uses that it really shows, where the truth is known.",
        "{:.1%}",
    ),
    "self_rank": (
        "Names kept",
        "Share of the learned concepts whose score follows the text of their own name more than any other's; all of "
        "them where nothing is learned.",
        "{:.1%}",
    ),
    "alignment": (
        "Agreement with the names",
        "Correlation of a learned concept's score with the score of its name's text, mean over the concepts; 1 where "
        "nothing is learned.",
        "{:z.2f}",
    ),
    "mixed_concepts": (
        "Texts per concept",
        "Of how many texts a learned concept is mixed (weights other than zero), mean over the concepts; 1 where "
        "nothing is learned.",
        "{:.1f}",
    ),
}
"""Further keys: name, meaning, format."""


def not_counted(metrics: dict[str, float], names: Mapping[str, Sequence[str]] | None = None) -> str:
    """What ``metrics.json`` says about images that could not be read, in words; empty if all were.

    Args:
        metrics: contents of ``metrics.json``.
        names: names of these images, by split; the first ones are added.

    Example:
        >>> lost = {"data/n_test": 79, "data/n_skipped_test": 1, "data/n_skipped_train": 0}
        >>> not_counted(lost)
        '1 of 80 test images could not be read and is not counted'
        >>> not_counted(lost, {"test": ["red/3.png"]})
        "1 of 80 test images could not be read and is not counted ('red/3.png')"
    """
    said = []
    for split in ("test", "val", "train"):
        if lost := int(metrics.get(f"data/n_skipped_{split}", 0)):
            total = f" of {lost + int(metrics[f'data/n_{split}']):,}" if split == "test" else ""
            which = f" ({quoted(clip(name) for name in names[split])})" if names and names.get(split) else ""
            are = "is" if lost == 1 else "are"
            said.append(f"{lost:,}{total} {split} images could not be read and {are} not counted{which}")
    return "; ".join(said)


@dataclass(frozen=True)
class ResolvedRow:
    """A head solved anew with so many concepts per class.

    Attributes:
        nec: concepts per class.
        accuracy: on the test split.
        gap: bound on the relative distance from the optimum.
        kkt: largest violation of the optimality conditions, as a share of the penalty.
    """

    nec: float
    accuracy: float
    gap: float
    kkt: float


def resolved_rows(metrics: dict[str, float]) -> list[ResolvedRow]:
    """The re-solved heads of a run, with their certificates, from ``metrics.json``."""
    rows = []
    for key in metrics:
        if found := re.fullmatch(r"nec/resolved(\d+)_nec", key):
            target = found.group(1)
            gap, kkt = (metrics[f"nec/resolved{target}_{name}"] for name in ("gap", "kkt"))
            rows.append(ResolvedRow(metrics[key], metrics[f"test/accuracy_nec{target}_resolved"], gap, kkt))
    return rows


@dataclass(frozen=True)
class AccuracyRow:
    """One classifier in the comparison.

    Attributes:
        name: what it is called.
        meaning: what it is, in a few words.
        values: by the keys of ``METRICS``; what is not known is missing.
        this: it is the run the report is about.
    """

    name: str
    meaning: str
    values: dict[str, float]
    this: bool = False


def accuracy_rows(
    method: str, metrics: dict[str, float], integrity: Integrity | None, baselines: dict[str, dict[str, float]]
) -> list[AccuracyRow]:
    """This run, the same method on meaningless concepts, and the baselines; all on the test split."""
    rows = [AccuracyRow(f"{method} (this run)", "the model of this report", _known(metrics), this=True)]
    if integrity is not None:
        for control, meaning in (
            ("shuffled", "every name gets another concept's direction"),
            ("random", "every concept is a random direction"),
        ):
            if control not in integrity.accuracy:
                continue
            values = {"accuracy": integrity.accuracy[control], "accuracy_nec5": integrity.nec5[control]}
            rows.append(AccuracyRow(f"{control} concepts", f"same method; {meaning}", values))
    meanings = {
        "zero_shot": "cosine with the class names, nothing trained",
        "linear_probe": "linear classifier on the features, no concepts",
    }
    rows += [AccuracyRow(name, meanings.get(name, ""), _known(values)) for name, values in baselines.items()]
    if integrity is not None:
        rows.append(AccuracyRow("chance", "always the most frequent class", {"accuracy": integrity.chance}))
    return rows


def _known(metrics: dict[str, float]) -> dict[str, float]:
    return {key: metrics[f"test/{key}"] for key in METRICS if f"test/{key}" in metrics}
