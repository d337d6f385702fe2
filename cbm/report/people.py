"""What people, or models that see, say about the concepts that a run used, as rows of its table of evidence."""

from pathlib import Path

from cbm.data.concept_answers import PEOPLE, PEOPLES_TABLE, answered_by, read_concept_answers
from cbm.metrics.integrity import Evidence, Status
from cbm.metrics.precision import ENOUGH, Precision, precision_of

MEANING = (
    "Somebody looked at one image after the other and said whether it shows one of the phrases that added most to its "
    "decision (python -m cbm label). Every class counts the same."
)


def answers_as_evidence(run: Path) -> tuple[Evidence, ...]:
    """One row for whoever answered about a split, people first; none if nobody did.

    Args:
        run: the run directory, with tables ``labels.csv`` and ``labels.MODEL.csv``.

    Raises:
        UserError: a table is damaged.
    """
    rows = []
    for table in (run / PEOPLES_TABLE, *sorted(run.glob("labels.*.csv"))):
        answers = read_concept_answers(table)
        by = answered_by(table)
        for split in dict.fromkeys(answer.split for answer in answers):
            found = precision_of(answer for answer in answers if answer.split == split)
            if found.count:
                rows.append(_row(found, by, split))
    return tuple(rows)


def _row(found: Precision, by: str, split: str) -> Evidence:
    """People's answers are a test from ``ENOUGH`` on; a model's never are: it can be wrong as the encoder is."""
    name = by.removeprefix("model:")
    people = by == PEOPLE
    finding = (
        f"{'people say' if people else f'{name} says'} that {found.spoken} of the phrases used for {split} images are "
        f"true of them: {found.count} answers about {found.classes} classes"
    )
    status: Status = "fact"
    if people and found.count >= ENOUGH:
        status = "passed" if found.passed else "failed"
    detail = [f"{found.skipped} skipped"] if found.skipped else []
    if people and found.count < ENOUGH:
        detail.append(f"a test from {ENOUGH} answers on")
    return Evidence(
        PEOPLE if people else by,
        "Do people see what it used?" if people else "Does a vision-language model see what it used?",
        finding,
        MEANING if people else f"{MEANING} Here {name} was asked: no person.",
        status,
        found.value,
        interval=(found.low, found.high),
        detail="; ".join(detail),
    )
