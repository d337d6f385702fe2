"""The six numbers that a person reads first, on the terminal and as tiles of the report; ``metrics.json`` has all."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from cbm.metrics import Integrity, chance_accuracy, unequal
from cbm.metrics.intervals import wilson_interval
from cbm.report.wording import percent

COUNT = 6
TOLD_IMAGES = 2048
"""Images on which the accuracy with told concepts is measured, at most (``cbm.metrics.evaluate.told_concepts``)."""
INTERVALS = "95% interval: how far another draw of the images (of subjects, where they are known) can move the number"


def thousandths(value: float) -> str:
    """``0.927``."""
    return f"{value:.3f}"


@dataclass(frozen=True)
class Headline:
    """One of the numbers.

    Attributes:
        name: name of the number.
        value: the number as it is shown.
        meaning: explanation in plain words.
        interval: ends of its 95 % interval over the images; None where there is none.
        form: how the ends are shown.
    """

    name: str
    value: str
    meaning: str
    interval: tuple[float, float] | None = None
    form: Callable[[float], str] = percent

    @property
    def range(self) -> str:
        """The interval in words: ``89.7 to 93.5%``; empty without one."""
        if self.interval is None:
            return ""
        low, high = map(self.form, self.interval)
        return f"{low.removesuffix('%')} to {high}"


def headline(
    metrics: dict[str, float],
    labels: Tensor,
    *,
    split: str = "test",
    integrity: Integrity | None = None,
    baselines: dict[str, Any] | None = None,
) -> list[Headline]:
    """The first six numbers that there are, the most important first.

    Args:
        metrics: contents of ``metrics.json``.
        labels: class indices ``[N]`` of the images, or labels ``[N, L]``.
        split: name of their split, with which the keys begin.
        integrity: evidence for the concepts, which has the accuracy on random concepts.
        baselines: metrics of other classifiers on the same images, by name.
    """
    known = {key.removeprefix(f"{split}/"): value for key, value in metrics.items() if key.startswith(f"{split}/")}
    if "auroc_macro" in known:
        return list(_labels(known, metrics, labels, split, baselines or {}))[:COUNT]
    found = [
        *_accuracies(known, labels, split, int(metrics.get(f"data/n_skipped_{split}", 0))),
        *_names(known),
        *_concept_labels(known),
        *_comparisons(integrity, baselines or {}, len(labels)),
        *_sparsity(known),
        *_further(known, len(labels)),
    ]
    return found[:COUNT]


def _share(name: str, value: float, count: int, meaning: str, interval: tuple[float, float] | None = None) -> Headline:
    """A share of ``count`` images, with Wilson's interval if none is known."""
    return Headline(name, percent(value), meaning, interval or wilson_interval(value, count))


def _interval(known: dict[str, float], key: str) -> tuple[float, float] | None:
    """The interval of a metric, if it was measured; runs of before have none."""
    ends = known.get(f"{key}_low"), known.get(f"{key}_high")
    return None if ends[0] is None or ends[1] is None else (ends[0], ends[1])


def _accuracies(known: dict[str, float], labels: Tensor, split: str, skipped: int) -> Iterator[Headline]:
    count, macro = len(labels), known.get("accuracy_macro")
    if "accuracy" in known:
        alone = f"largest class alone {percent(chance_accuracy(labels))}"
        lost = f" ({skipped:,} more could not be read)" if skipped else ""
        apart = macro is not None and unequal(labels)
        beside = f"of {count:,} images{lost}; {alone}"
        beside += f", mean of the classes (macro) {percent(macro)}" if macro is not None and not apart else ""
        yield _share(f"{split} accuracy", known["accuracy"], count, beside, _interval(known, "accuracy"))
        if apart:
            meaning = "accuracy within a class, every class counting the same (macro): the classes differ much in size"
            yield Headline("mean of the classes", percent(macro), meaning, _interval(known, "accuracy_macro"))
    own = known.get("accuracy_nec5")
    if "accuracy_nec5_resolved" in known:
        cut = "" if own is None else f"; its own head cut to 5: {percent(own)}"
        meaning = f"a new head that uses 5 concepts per class (NEC 5){cut}"
        value, span = known["accuracy_nec5_resolved"], _interval(known, "accuracy_nec5_resolved")
        yield _share("with 5 concepts per class", value, count, meaning, span)
    elif own is not None:
        meaning = "every class uses only its five most important concepts, with the weights it has"
        yield _share("own head cut to 5", own, count, meaning, _interval(known, "accuracy_nec5"))


def _names(known: dict[str, float]) -> Iterator[Headline]:
    if "reader_accuracy" in known:
        null = f"{100 * known['reader_null']:.0f} ± {percent(known['reader_null_sd'])} with the names exchanged"
        meaning = f"reads the five words an image gets, nothing trained; {null}"
        interval = (known["reader_accuracy_low"], known["reader_accuracy_high"])
        yield Headline("a reader of the names", percent(known["reader_accuracy"]), meaning, interval)


def _concept_labels(known: dict[str, float]) -> Iterator[Headline]:
    if "concept_auroc" in known and "concepts_matched" in known:
        many = f"mean of the {int(known['concepts_matched'])} concepts with labels"
        meaning = f"how well scores find the images that show a concept, {many}; 0.5 is guessing"
        value, span = known["concept_auroc"], _interval(known, "concept_auroc")
        yield Headline("concept AUROC", thousandths(value), meaning, span, thousandths)


def _comparisons(integrity: Integrity | None, baselines: dict[str, Any], count: int) -> Iterator[Headline]:
    accuracy = {name: values["test/accuracy"] for name, values in baselines.items() if "test/accuracy" in values}
    names = accuracy.get("zero_shot")
    if "linear_probe" in accuracy:
        beside = "" if names is None else f"; zero-shot, by the class names alone: {percent(names)}"
        meaning = f"a linear classifier on the same features, without concepts{beside}"
        yield _share("linear probe", accuracy["linear_probe"], count, meaning)
    elif names is not None:
        yield _share("zero-shot", names, count, "similarity with the class names, nothing trained")
    if integrity is not None and "random" in integrity.accuracy:
        shuffled = integrity.accuracy.get("shuffled")
        beside = "" if shuffled is None else f"; on shuffled ones {percent(shuffled)}"
        yield _share(
            "random concepts", integrity.accuracy["random"], count, f"the same method on meaningless concepts{beside}"
        )


def _sparsity(known: dict[str, float]) -> Iterator[Headline]:
    if "nec" in known:
        spread = ""
        if "nec_effective" in known:
            spread = f"; the weight is spread as over {known['nec_effective']:.3g} equal ones"
        meaning = f"concepts with a weight other than zero, mean of the classes{spread}"
        yield Headline("concepts per class", f"{known['nec']:.3g}", meaning)


def _further(known: dict[str, float], count: int) -> Iterator[Headline]:
    if "concept_accuracy" in known:
        meaning = "right yes/no answers about the concepts with labels"
        yield Headline("concept accuracy", percent(known["concept_accuracy"]), meaning)
    if "intervention_accuracy_100" in known:
        told, count = known["intervention_accuracy_100"], min(count, TOLD_IMAGES)
        yield _share("all concepts told", told, count, "accuracy once a person has set every concept with a label")
    if "ece" in known:
        meaning = "how far stated probabilities are from the share that is right; 0 is best"
        if "ece_debiased" in known:
            meaning += f"; {thousandths(known['ece_debiased'])} without what the noise of few images adds"
        yield Headline("calibration error", thousandths(known["ece"]), meaning, _interval(known, "ece"), thousandths)


def _labels(
    known: dict[str, float], metrics: dict[str, float], labels: Tensor, split: str, baselines: dict[str, Any]
) -> Iterator[Headline]:
    """The numbers of a model that says any number of labels."""
    count, total = int(known["labels_scored"]), labels.shape[1]
    meaning = f"how well labels rank {len(labels):,} images, mean of {count} labels; 0.5 is guessing"
    meaning += f" ({total - count} without an image that has it, or lacks it)" if count < total else ""
    span = _interval(known, "auroc_macro")
    yield Headline(f"{split} AUROC", thousandths(known["auroc_macro"]), meaning, span, thousandths)
    if "auroc_macro_nec5_resolved" in known:
        own = known.get("auroc_macro_nec5")
        beside = "" if own is None else f"; its own head cut to 5: {thousandths(own)}"
        value, span = known["auroc_macro_nec5_resolved"], _interval(known, "auroc_macro_nec5_resolved")
        meaning = f"new heads with exactly 5 concepts for every label (NEC 5){beside}"
        yield Headline("with 5 concepts a label", thousandths(value), meaning, span, thousandths)
    if "f1_macro" in known:
        half = known.get("f1_macro_half")
        beside = "" if half is None else f"; at a probability of one half {thousandths(half)}"
        meaning = f"F1 at thresholds from validation, mean of the labels{beside}"
        yield Headline("F1", thousandths(known["f1_macro"]), meaning)
    yield from _concept_labels(known)
    if (probe := baselines.get("linear_probe", {}).get("test/auroc_macro")) is not None:
        zero = baselines.get("zero_shot", {}).get("test/auroc_macro")
        beside = "" if zero is None else f"; zero-shot, by the names alone: {thousandths(zero)}"
        meaning = f"AUROC of a linear classifier on the same features, without concepts{beside}"
        yield Headline("linear probe", thousandths(probe), meaning)
    if (random := metrics.get("controls/random")) is not None:
        low, high = metrics.get("controls/random_lead_low"), metrics.get("controls/random_lead_high")
        beside = "" if low is None or high is None else f"; these concepts lead by {low:+.3f} to {high:+.3f}"
        yield Headline("random concepts", thousandths(random), f"the same method on meaningless concepts{beside}")
    if "map" in known:
        yield Headline("average precision", thousandths(known["map"]), "mean of the labels (mAP)")
    if "ece_macro" in known:
        meaning = "how far stated probabilities are from the share that is right, mean of the labels; 0 is best"
        yield Headline("calibration error", thousandths(known["ece_macro"]), meaning)
