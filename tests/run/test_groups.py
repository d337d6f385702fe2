"""Groups from a table to the numbers of a run, of an evaluation, of edits, and of a comparison."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from birds_run import QUICK, small

import cbm
from cbm.report.compare import compare_runs, format_table

TOLD = [*QUICK, "report=false", "controls=false"]


def metrics_of(run: Path) -> dict[str, float]:
    return json.loads((run / "metrics.json").read_text())


@pytest.fixture
def table(colour_folder: Path) -> Path:
    """The colours with a site: a third of the pictures of unknown site."""
    rows = []
    for number, path in enumerate(sorted(colour_folder.glob("*/*.png"))):
        split = ("train", "test", "val", "test")[number % 4]
        rows.append([path.relative_to(colour_folder), path.parent.name, split, ("north", "", "south")[number % 3]])
    with (colour_folder / "images.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "split", "site"], *rows])
    return colour_folder / "images.csv"


def test_a_table_with_groups(command, table: Path, tmp_path: Path):
    plain = ["dataset=csv", f"dataset.root={table}", "method=linear_probe", *TOLD[:2], *TOLD[-2:]]
    assert command("train", *plain, "dataset.args.groups=[site]", "run_dir=with")[0] == 0
    assert command("train", *plain, "dataset.args.ignore=[site]", "run_dir=without")[0] == 0
    with_groups, without = metrics_of(Path("with")), metrics_of(Path("without"))
    new = set(with_groups) - set(without)
    assert new == set()  # three or four test pictures of a class and site: none can be the worst
    unstable = {key for key in without if key.startswith(("time/", "memory/"))}
    assert {k: v for k, v in with_groups.items() if k not in unstable} == {
        k: v for k, v in without.items() if k not in unstable
    }


def test_the_spurious_birds(command, tmp_path: Path):
    data = [*small("birds_spurious"), "dataset.args.n_test=15"]
    settings = ["dataset=birds_spurious", *data, "method=posthoc", *TOLD]
    assert command("train", *settings, "run_dir=runs/one")[0] == 0
    values = metrics_of(Path("runs/one"))
    model = cbm.load("runs/one")
    cache = Path(data[1].removeprefix("cache="))
    split = model.split("test", cache=cache)
    right = model.predict_features(split.x).logits.argmax(dim=1).numpy() == split.y.numpy()
    shares = []
    for column in split.groups.values():
        for value in np.unique(column):
            for label in range(20):
                rows = (column == value) & (split.y.numpy() == label)
                shares += [right[rows].mean()] if rows.sum() >= 10 else []
    assert values["test/groups"] == len(shares) > 10
    assert values["test/worst_group"] == pytest.approx(min(shares))
    assert values["test/worst_group_low"] <= values["test/worst_group"] < values["test/worst_group_high"]
    row = compare_runs([Path("runs/one")])
    assert "worst group %" in format_table(row, "markdown")
    assert row[0].intervals["test/worst_group"] == (values["test/worst_group_low"], values["test/worst_group_high"])

    edits = "\n".join(f"- {{op: remove, concept: {name} in background}}" for name in ("water", "grass", "forest"))
    Path("edits.yaml").write_text(edits + "\n")
    status, said = command("eval", "run=runs/one", data[1], "edits=edits.yaml", "output=out.json")
    assert status == 0, said
    edited = json.loads(Path("out.json").read_text())
    change = edited["test/worst_group"] - values["test/worst_group"]
    assert edited["edits/worst_group_change"] == pytest.approx(change)
    assert edited["edits/worst_group_change_low"] <= change <= edited["edits/worst_group_change_high"]
    assert "the worst of the groups with ten or more pictures: " in said
    assert "place: away" in said
