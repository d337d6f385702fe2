"""``python -m cbm intervene``."""

import csv
import json
from pathlib import Path

import pytest
from birds_run import QUICK, small
from llm_server import completion, send, server  # noqa: F401

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
        (["--answers", "none.csv"], "cannot read 'none.csv'"),
    ):
        status, _, errors = module("intervene", "one", *cache, *arguments)
        assert status == 2
        assert message in errors
    (tmp_path / "expert.csv").write_text(f"picture,{bank.texts[0]}x\n{name},1\n")
    assert "no concept" in module("intervene", "one", *cache, "--answers", "expert.csv")[2]
    (tmp_path / "expert.csv").write_text(f"picture,{bank.texts[0]}\n{name},yes\n")
    assert "is 'yes'; expected 1, 0 or nothing" in module("intervene", "one", *cache, "--answers", "expert.csv")[2]


def test_what_is_told_moves_what_goes_with_it_and_probes_are_told_through_their_features(
    trained: Path, command, module
):
    cache = ("--cache", small()[1].removeprefix("cache="))
    status, _, errors = module("intervene", "one", *cache, "--policies", "random", "--questions", "2", "--propagate")
    assert status == 0, errors
    moved = json.loads((trained / "interventions.json").read_text())["random"]["accuracy"]
    status, _, errors = module("intervene", "one", *cache, "--policies", "random", "--questions", "2")
    assert status == 0, errors
    alone = json.loads((trained / "interventions.json").read_text())["random"]["accuracy"]
    assert moved[0] == alone[0]
    assert moved[1:] != alone[1:]
    status, errors = command("train", *small(), "method=linear_probe", "run_dir=probe", "report=false")
    assert status == 0, errors
    status, out, errors = module("intervene", "probe", *cache, "--questions", "4")
    assert status == 0, errors
    curve = json.loads(Path("probe/interventions.json").read_text())["random"]
    assert len(curve["accuracy"]) == 5
    assert curve["cost"] == [0, 1, 2, 3, 4]


def test_a_vision_language_model_is_asked(trained: Path, module, server, tmp_path: Path):  # noqa: F811
    def answer(handler, body):
        question = body["messages"][0]["content"]
        assert question[1]["image_url"]["url"].startswith("data:image/png;base64,")
        send(200, completion("Yes." if "wing" in question[0]["text"] else "no"))(handler, body)

    server.always = answer
    cache = tmp_path / "own"
    shared = Path(small()[1].removeprefix("cache="))
    arguments = (
        "intervene",
        "one",
        "--cache",
        str(cache),
        "--questions",
        "1",
        "--expert",
        "tiny",
        "--base-url",
        server.url,
    )
    cache.symlink_to(shared)
    for kept in (shared / "vision").glob("*"):
        kept.unlink()
    status, _, errors = module(*arguments, "--policies", "random")
    assert status == 0, errors
    asked = len(server.bodies)
    assert asked > 0
    status, _, errors = module(*arguments, "--policies", "random")
    assert status == 0, errors
    assert len(server.bodies) == asked  # every answer is kept
    file = next((shared / "vision").glob("*.jsonl"))
    lines = file.read_text().splitlines()
    assert len(lines) == asked
    file.write_text("\n".join(lines[:-1]) + '\n{"picture": "half a li')
    status, _, errors = module(*arguments, "--policies", "random")
    assert status == 0, errors
    assert len(server.bodies) == asked + 1
    file.unlink()
    server.always = send(400, {"error": {"message": "no pictures here"}})
    status, _, errors = module(*arguments, "--policies", "random")
    assert status == 2
    assert "says nothing about pictures (BadRequestError" in errors
    assert "one of them" in module(*arguments, "--answers", "x.csv")[2]
