"""Gather the evidence for and against the concepts of a model that says any number of labels."""

from collections.abc import Mapping

from cbm.layers import predict_logits
from cbm.metrics.evaluate import deleted_logits, macro, outside_share
from cbm.metrics.integrity import Evidence, Integrity, outside_test, truth_test
from cbm.metrics.label_integrity import (
    CHANCE,
    CONTROLS,
    control_test,
    label_names_test,
    not_for_labels,
    other_label_facts,
    renamed_auroc,
)
from cbm.metrics.multilabel import auroc_macro_difference
from cbm.run.evidence import Subject, compare_with_labels, contradict, find_leaks, read_names, truth_metrics


def gather_label_evidence(subject: Subject, controls: Mapping[str, float]) -> tuple[Integrity, dict[str, float]]:
    """``gather_evidence`` of a model that says any number of labels: mean AUROC in the place of accuracy.

    Args:
        subject: the model.
        controls: what ``label_controls`` measured.

    Returns:
        The evidence, and its numbers with the keys of ``metrics.json``.
    """
    model, bank, test = subject.model, subject.bank, subject.data.test
    _, readings = read_names(subject)
    overall, within = compare_with_labels(subject)
    logits, bare = predict_logits(model, test.x), deleted_logits(model, test.x)
    ours, deleted, renamed = macro(logits, test.y), macro(bare, test.y), renamed_auroc(model, test.x, test.y)
    lead = auroc_macro_difference(logits, bare, test.y, test.subjects)
    outside = outside_share(model, test.x)
    fitted = {name: controls[f"controls/{name}"] for name in CONTROLS if f"controls/{name}_lead_low" in controls}
    tests: list[Evidence] = [
        label_names_test(
            readings, f"{subject.why_no_owners}, and no other text encoder reads them (evidence.reader=NAME)"
        ),
        not_for_labels(),
        truth_test(overall, within, len(bank), many=True),
        contradict(subject),
        find_leaks(subject),
        outside_test(outside),
        *(
            control_test(name, ours, value, *(controls[f"controls/{name}_lead_{end}"] for end in ("low", "high")))
            for name, value in fitted.items()
        ),
        *other_label_facts(ours, deleted, renamed, lead),
    ]
    right = {"real": ours, **fitted}
    found = Integrity(tuple(tests), right, {}, (), deleted, renamed, CHANCE, outside, many=True)
    values = {f"integrity/{test.key}": float(test.passed) for test in tests if test.status in ("passed", "failed")}
    values |= {"integrity/carries": float(found.carries), "integrity/deleted_auroc_macro": deleted}
    values |= {"integrity/renamed_auroc_macro": renamed, "integrity/outside_share": outside}
    if readings:
        best = readings[-1]
        values |= {"test/reader_auroc": best.accuracy, "test/reader_auroc_low": best.low}
        values |= {"test/reader_auroc_high": best.high, "test/reader_auroc_null": best.null, "test/reader_p": best.p}
    return found, values | truth_metrics(overall, within)
