"""``python -m cbm intervene``."""

import csv
import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from birds_run import QUICK, small
from llm_server import completion, send, server  # noqa: F401

import cbm
from cbm.concepts import Concept, ConceptBank
from cbm.concepts.llm.vision import PROMPT
from cbm.errors import UserError
from cbm.metrics.answers import noisy_answers
from cbm.run.intervene import read_answers


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
    assert list(seen) == ["random", "ucp", "cctp", "ectp", "eudtp", "coop", "oracle", "told wrong"]
    assert seen["told wrong"]["accuracy"][-1] < seen["random"]["accuracy"][-1]
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
    curves = json.loads((trained / "interventions.json").read_text())
    assert list(curves) == ["ucp"]  # what somebody answered is neither right nor wrong here
    curve = curves["ucp"]
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
    for option in ("--propagate", "--cost=belly colour=2", "--answers=answers.csv"):
        status, _, errors = module("intervene", "probe", *cache, option)
        assert status == 2
        assert "need a bottleneck" in errors
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
    shutil.rmtree(shared / "vision", ignore_errors=True)
    status, _, errors = module(*arguments, "--policies", "random")
    assert status == 0, errors
    asked = len(server.bodies)
    assert asked > 0
    assert f"tiny answered {asked} new questions ({asked} are kept" in errors
    status, _, errors = module(*arguments, "--policies", "random")
    assert status == 0, errors
    assert len(server.bodies) == asked  # every answer is kept
    first, *others = sorted((shared / "vision").rglob("*.json"))
    first.write_text("half an ans")
    status, _, errors = module(*arguments, "--policies", "random")
    assert status == 0, errors
    assert len(server.bodies) == asked + 1
    request = json.loads(first.read_text())["request"]
    concept = re.search('"(.*)"', request["user"])[1]
    name = hashlib.sha256(f"tiny|{PROMPT}".encode()).hexdigest()[:12]
    former = {"picture": request["image"], "concept": concept, "answer": "Yes."}
    (shared / "vision" / f"{name}.jsonl").write_text(json.dumps(former) + '\n{"picture": "half a li')
    first.unlink()
    status, _, errors = module(*arguments, "--policies", "random")
    assert status == 0, errors
    assert len(server.bodies) == asked + 1  # what was kept in one file is not asked again
    shutil.rmtree(shared / "vision")
    server.always = send(400, {"error": {"message": "no pictures here"}})
    status, _, errors = module(*arguments, "--policies", "random")
    assert status == 2
    assert "does not accept the request (status 400): no pictures here; 0 answers are kept, run the same" in errors
    assert "one of them" in module(*arguments, "--answers", "x.csv")[2]


def test_wrong_answers_about_an_exclusive_group_name_another_value():
    """One colour is said to be shown, never two or none; single concepts are turned round as before."""
    g = torch.Generator().manual_seed(0)
    n, colours, shapes = 4000, [1, 4, 5], [2, 3]
    truth = torch.zeros(n, 8)
    for group in (colours, shapes):
        truth[torch.arange(n), torch.tensor(group)[torch.randint(len(group), (n,), generator=g)]] = 1.0
    truth[:, [0, 6, 7]] = torch.randint(2, (n, 3), generator=g).float()
    given = noisy_answers(truth, 0.3, 1, [colours, shapes, [7], []])
    for group in (colours, shapes):
        assert bool((given[:, group].sum(dim=1) == 1).all())
        wrong = (given[:, group] != truth[:, group]).any(dim=1)
        assert float(wrong.float().mean()) == pytest.approx(0.3, abs=0.03)
    said = given[(truth[:, 1] == 1) & (given[:, 1] == 0)][:, [4, 5]].mean(dim=0)
    assert said.tolist() == pytest.approx([0.5, 0.5], abs=0.07)  # any other colour
    assert torch.equal(given[:, [0, 6, 7]], noisy_answers(truth, 0.3, 1)[:, [0, 6, 7]])
    assert torch.equal(noisy_answers(truth, 0.0, 1, [colours, shapes]), truth)
    unknown = truth.index_fill(1, torch.tensor([4]), torch.nan)
    given = noisy_answers(unknown, 0.5, 1, [colours])
    assert torch.equal(given.isnan(), unknown.isnan())
    assert float(given[:, [1, 5]].sum(dim=1).max()) == 1
    none = noisy_answers(torch.zeros(500, 8), 0.5, 1, [colours])  # a colour that the bank does not know
    assert set(none[:, colours].sum(dim=1).tolist()) == {0.0, 1.0}


def test_no_wrong_answer_about_a_level_skips_one_or_contradicts_itself():
    """One level up or down, never out of the scale; both as often where there are both."""
    g = torch.Generator().manual_seed(0)
    n, steps = 6000, [1, 2, 4]
    level = torch.randint(4, (n,), generator=g)
    truth = torch.randint(2, (n, 6), generator=g).float()
    truth[:, steps] = (level[:, None] >= torch.tensor([1, 2, 3])).float()
    given = noisy_answers(truth, 0.4, 1, [steps], [steps])
    said = given[:, steps].sum(dim=1).long()
    assert torch.equal(given[:, steps], (said[:, None] >= torch.tensor([1, 2, 3])).float())  # a level, not just steps
    away = said - level
    assert set(away.tolist()) == {-1, 0, 1}
    for true in range(4):
        assert float((away != 0)[level == true].float().mean()) == pytest.approx(0.4, abs=0.04)
    assert set(away[level == 0].tolist()) == {0, 1}
    assert set(away[level == 3].tolist()) == {-1, 0}
    middle = away[((level == 1) | (level == 2)) & (away != 0)]
    assert float((middle == 1).float().mean()) == pytest.approx(0.5, abs=0.04)
    assert torch.equal(given[:, [0, 3, 5]], noisy_answers(truth, 0.4, 1)[:, [0, 3, 5]])
    unknown = truth.clone()
    unknown[:5, steps] = torch.nan
    assert torch.equal(noisy_answers(unknown, 0.4, 1, [steps], [steps]).isnan(), unknown.isnan())


def test_a_noisy_number_is_off_by_a_share_of_its_deviation():
    truth = torch.randn(20000, 3, generator=torch.Generator().manual_seed(0))
    truth[:7, 1] = torch.nan
    given = noisy_answers(truth, 0.3, 1, numbers=[0, 1])
    off = (given - truth)[7:, :2]
    assert off.std(dim=0).tolist() == pytest.approx([0.3, 0.3], rel=0.03)
    assert off.mean(dim=0).tolist() == pytest.approx([0.0, 0.0], abs=0.01)
    assert torch.equal(given.isnan(), truth.isnan())
    assert torch.equal(noisy_answers(truth, 0.0, 1, numbers=[0, 1]).nan_to_num(9), truth.nan_to_num(9))


def test_answers_about_numbers_are_in_their_unit(tmp_path: Path):
    about = {"mean": 20.0, "sd": 8.0, "unit": "mm", "low": 1.0, "high": 40.0}
    bank = ConceptBank("b", "b", (Concept("red"), Concept("size", provenance={"number": about})))
    file = tmp_path / "answers.csv"
    file.write_text("picture,red,size\na,1,24\nb,,\n")
    found = read_answers(file, ["a", "b"], bank)
    assert found[0].tolist() == [1.0, 0.5]
    assert bool(found[1].isnan().all())
    for wrong in ("large", "nan", "inf"):
        file.write_text(f"picture,red,size\na,1,{wrong}\n")
        with pytest.raises(UserError, match=f"line 2: 'size' is '{wrong}'; expected a number of mm, or nothing"):
            read_answers(file, ["a", "b"], bank)
