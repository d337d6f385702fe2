"""What the verdict says, for every combination of what was passed, failed and could not be tested."""

import itertools
import json
from dataclasses import asdict

import pytest

from cbm.metrics.grounding import Association
from cbm.metrics.integrity import (
    Evidence,
    Integrity,
    association_test,
    contradiction_test,
    integrity_from_json,
    leak_test,
    names_test,
    outside_test,
    sparsity_fact,
    truth_test,
)
from cbm.metrics.reader import Reading

READ = Reading("owners", 0.5, 0.45, 0.55, 0.11, 0.03, 0.21, 0.005, 199, 450)
GOING = Association(1.2, 1.0, 1.4, 0.0, 0.05, 0.005)
KEYS = ("names", "association", "truth", "leak", "outside")


def found(**statuses: str) -> Integrity:
    """Evidence with these results; the others are passed."""
    return Integrity(
        tuple(Evidence(key, f"{key}?", f"[{key}]", "", statuses.get(key, "passed")) for key in KEYS)  # type: ignore[arg-type]
    )


def test_everything_passed():
    assert found().carries
    assert found().good is True
    assert found().verdict == "the concepts carry the decision: [names], and [truth]"


@pytest.mark.parametrize("statuses", itertools.product(("passed", "failed", "untested"), repeat=5))
def test_carry_is_said_only_where_all_is_passed(statuses: tuple[str, ...]):
    integrity = found(**dict(zip(KEYS, statuses)))
    needed = [status for key, status in zip(KEYS, statuses) if key != "association"]
    assert integrity.carries == ("carry" in integrity.verdict) == (set(needed) == {"passed"})
    assert (integrity.good is False) == ("failed" in statuses and not integrity.carries)
    for key, status in zip(KEYS, statuses):
        if status == "failed":
            assert f"[{key}]" in integrity.verdict or integrity.carries or key == "association"


def test_what_is_not_shown_is_said():
    said = found(truth="untested").verdict
    assert said == "class-associated: [names]; not shown: that the phrases are true of the images ([truth])"
    said = found(names="untested", association="untested").verdict
    assert said == "the concepts are what they say: [truth]; not shown: that the names say the class ([names])"
    said = found(names="failed", truth="failed").verdict
    assert said == "the names say nothing about the classes: [names]; but [truth]"
    nothing = found(names="untested", truth="untested", association="untested").verdict
    assert nothing.startswith("nothing is shown about the names of the concepts; not shown: ")
    assert found(outside="failed").verdict.endswith("; but [outside]")


def test_words_with_their_numbers():
    names = names_test([READ], "")
    assert names.finding == "a reader of five words gets 50.0% (45.0 to 55.0%; names exchanged: 11 ± 3.0%, p = 0.005)"
    assert (names.status, names.value, names.null, names.p) == ("passed", 0.5, 0.11, 0.005)
    assert names_test([], "nobody wrote them").finding == "cannot be tested: nobody wrote them"
    going = association_test(GOING, "")
    assert "+1.20 sd on images of their owners (+1.00 to +1.40; owners exchanged: +0.00 ± 0.05" in going.finding
    assert association_test(None, "why").status == "untested"
    assert truth_test(None, None).finding == "cannot be tested: the data set labels none of the concepts"
    fact = sparsity_fact(0.79, (0.7, 0.8))
    assert fact.status == "fact"
    assert fact.finding == (
        "a new head with 5 concepts per class gets 79.0%; on random directions 75.0% ± 7.1% (70.0% to 80.0% in 2 draws)"
    )


def test_leaks():
    assert leak_test([], 0, 50).status == "passed"
    assert leak_test(["a cat"], 0, 50).status == "passed"  # a few are said and do not decide
    assert leak_test(["a cat"] * 6, 0, 50).status == "failed"
    assert "6 of 50 phrases name a class (“a cat”)" in leak_test(["a cat"] * 6, 0, 50).finding
    assert leak_test([], 30, 50).status == "failed"
    assert outside_test(0.1).status == "passed"
    assert outside_test(0.11).status == "failed"


def test_the_worst_phrases_are_listed():
    told = contradiction_test({"a": 0.9, "b": 0.4, "c": 0.5}, 1 / 3)
    assert told.status == "failed"
    assert told.detail == "the worst, with their AUROC: “b” (0.40), “c” (0.50), “a” (0.90)"


def test_it_survives_json_and_older_forms_are_not_guessed():
    before = Integrity((names_test([READ], ""), sparsity_fact(0.7, (0.6,))), {"real": 0.9}, {"real": 0.8}, (0.6,))
    again = integrity_from_json(json.loads(json.dumps(asdict(before))))
    assert again is not None
    assert again.evidence == before.evidence
    assert again.random_resolved == (0.6,)
    older = {"evidence": [{"question": "?", "finding": "", "meaning": "", "passed": True, "decisive": True}]}
    assert integrity_from_json(older) is None
    assert integrity_from_json({}) is None
