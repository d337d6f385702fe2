"""``python -m cbm intervene``."""

import csv
import json
from pathlib import Path

import pytest
from birds_run import QUICK, small

import cbm


@pytest.fixture
def trained(command, tmp_path: Path) -> Path:
    status, errors = command("train", *small(), *QUICK, "run_dir=one", "report=false", "controls=false")
    assert status == 0, errors
    return tmp_path / "one"


def test_policies_answers_and_costs(trained: Path, module, tmp_path: Path):
    cache = ("--cache", small()[1].removeprefix("cache="))
    status, out, errors = module("intervene", "one", *cache, "--questions", "3")
    assert status == 0, errors
    seen = json.loads((trained / "interventions.json").read_text())
    assert list(seen) == ["random", "ucp", "cctp", "ectp", "eudtp", "coop", "oracle"]
    start = json.loads((trained / "metrics.json").read_text())["test/accuracy"]
    assert all(len(curve["accuracy"]) == 4 for curve in seen.values())
    assert all(curve["accuracy"][0] == pytest.approx(start, abs=0.01) for curve in seen.values())
    assert "oracle" in out

    bank = cbm.load(trained).bank
    picture = sorted(Path(small()[0].removeprefix("dataset.root=")).rglob("images/test/*/*.png"))[0]
    name = picture.as_posix().split("/birds/", 1)[1]
    name = name[name.index("images/") :]
    with (tmp_path / "expert.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["picture", bank.texts[0]], [name, "1"]])
    status, _, errors = module("intervene", "one", *cache, "--answers", "expert.csv", "--policies", "ucp")
    assert status == 0, errors
    curve = json.loads((trained / "interventions.json").read_text())["ucp"]
    assert 0 < curve["cost"][-1] < 0.1
    for arguments, message in (
        (["--policies", "upc"], "unknown policy 'upc': did you mean 'ucp'"),
        (["--noise", "2"], "--noise 2.0: expected a share"),
        (["--cost", "x"], "--cost x: expected NAME=COST"),
        (["--cost", "no such thing=2"], "no concept or group 'no such thing' to ask about"),
        (["--answers", "none.csv"], "cannot read answers from 'none.csv'"),
    ):
        status, _, errors = module("intervene", "one", *cache, *arguments)
        assert status == 2
        assert message in errors
    (tmp_path / "expert.csv").write_text(f"picture,{bank.texts[0]}x\n{name},1\n")
    assert "no concept" in module("intervene", "one", *cache, "--answers", "expert.csv")[2]
    (tmp_path / "expert.csv").write_text(f"picture,{bank.texts[0]}\n{name},yes\n")
    assert "is 'yes'; expected 1, 0 or nothing" in module("intervene", "one", *cache, "--answers", "expert.csv")[2]
