"""``cbm audit``, from the command line: verdicts, the exit status, and lists that are none."""

import json
from pathlib import Path

from birds_run import QUICK, small
from conftest import one_line

import cbm

CACHE = ["--cache", small()[1].removeprefix("cache=")]
SETTINGS = [a for a in QUICK if not a.startswith(("method.", "nec"))]


def test_the_list_decides_the_exit_status(command, module, tmp_path: Path):
    settings = [*small("birds_spurious"), *SETTINGS, "nec=[]", "report=false", "controls=false"]
    status, said = command("train", "dataset=birds_spurious", "method=posthoc", "run_dir=one", *settings)
    assert status == 0, said
    model = cbm.load("one")
    listed = tmp_path / "audit.yaml"

    def audited(*entries: str) -> tuple[int, list[dict]]:
        listed.write_text("\n".join(entries))
        status, shown, errors = module("audit", "one", "audit.yaml", *CACHE, "--json")
        assert status in (0, 1), errors
        return status, json.loads(shown)

    status, found = audited(*(f"- {{concept: {text}, expect: neutral}}" for text in model.bank.texts))
    assert status == 0
    found.sort(key=lambda each: each["flips_alike"])
    most, least = found[-1], found[0]
    assert (most["verdict"], least["verdict"]) == ("found", "not in use")
    assert most["flips_alike"] > max(0.005, most["chance"])
    assert 1 <= most["rank"] < least["rank"]

    used, unused, phrase = most["concept"], least["concept"], "a steam train"
    status, found = audited(f"- {{concept: {used}, expect: unwanted}}", f"- {{concept: {phrase}, expect: neutral}}")
    assert status == 1
    assert found[0]["verdict"] == "unwanted in use"
    assert [each["in_bank"] for each in found] == [True, False]
    assert [each["fails"] for each in found] == [True, False]
    status, found = audited(f"- {{concept: {used}, expect: wanted, classes: [{', '.join(model.classes)}]}}")
    assert (status, found[0]["verdict"]) == (0, "found")
    status, found = audited(f"- {{concept: {unused}, expect: wanted}}")
    assert (status, found[0]["verdict"]) == (1, "missing")
    status, found = audited(f"- {{concept: {unused}, expect: unwanted}}")
    assert (status, found[0]["verdict"]) == (0, "not in use")
    status, shown, _ = module("audit", "one", "audit.yaml", *CACHE, "--split", "val")
    assert "unwanted" in shown

    for text, line in (
        ("concept: x", "is no audit list"),
        ("- {concept: x}", "entry 1: expected a mapping with 'concept' and 'expect'"),
        ("- {concept: x, expect: unwnated}", "unwanted"),
        ("- {concept: x, expect: wanted, clases: [a]}", "classes"),
        ("- {concept: x, expect: wanted, classes: [Kelowyn]}", "Kellowyn"),
        ("- {concept: x, expect: wanted, classes: a}", "expected a list of names"),
    ):
        listed.write_text(text)
        assert line in one_line(module("audit", "one", "audit.yaml", *CACHE)[::2]), text
    assert "--split=train" in one_line(module("audit", "one", "audit.yaml", "--split=train")[::2])
    assert "nowhere.yaml" in one_line(module("audit", "one", "nowhere.yaml", *CACHE)[::2])
