"""What people and models said, as rows of the table of evidence."""

from pathlib import Path

from cbm.data.concept_answers import ConceptAnswer, write_concept_answers
from cbm.report.people import answers_as_evidence


def write(run: Path, yes: int, no: int, name: str = "labels.csv", by: str = "people", split: str = "val") -> None:
    said = [True] * yes + [False] * no + [None]
    answers = [ConceptAnswer(f"{n}.png", "ab"[n % 2], split, "tail", shown) for n, shown in enumerate(said)]
    write_concept_answers(run / name, answers, by)


def test_a_fact_with_few_answers_and_a_test_with_enough(tmp_path: Path):
    assert answers_as_evidence(tmp_path) == ()
    write(tmp_path, 20, 0)
    (row,) = answers_as_evidence(tmp_path)
    assert (row.key, row.status, row.value) == ("people", "fact", 1.0)
    assert row.detail == "1 skipped; a test from 30 answers on"
    write(tmp_path, 30, 10)
    (row,) = answers_as_evidence(tmp_path)
    assert (row.status, row.detail) == ("passed", "1 skipped")
    assert row.interval is not None
    assert row.interval[0] > 0.5
    assert row.finding == (
        "people say that 75.0% (59.8 to 85.8%) of the phrases used for val images are true of them: 40 answers about 2 "
        "classes"
    )
    write(tmp_path, 22, 18)
    assert answers_as_evidence(tmp_path)[0].status == "failed"


def test_a_model_has_a_row_of_its_own_that_decides_nothing(tmp_path: Path):
    write(tmp_path, 40, 0, "labels.a.csv", "model:a/b")
    write(tmp_path, 2, 2)
    people, model = answers_as_evidence(tmp_path)
    assert (people.key, model.key) == ("people", "model:a/b")
    assert model.status == "fact"
    assert model.finding.startswith("a/b says that 100.0%")


def test_questions_that_were_all_skipped_are_no_row(tmp_path: Path):
    write(tmp_path, 0, 0)
    assert answers_as_evidence(tmp_path) == ()
