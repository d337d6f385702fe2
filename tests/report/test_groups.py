"""The table of groups on both pages: worst first, the small ones marked, and nothing where there are no groups."""

import re
from pathlib import Path

import numpy as np
import pytest
from labelled_run import LabelRun
from reported_run import Run
from written_page import Page

from cbm.report.groups import FIRST, describe_groups


def with_sites(run, values: list[str]):
    for split in run.data.splits.values():
        split.groups = {"site": np.arange(len(split)) % len(values)}
    run.data.group_names["site"] = values
    return run


@pytest.fixture
def birds() -> Run:
    return with_sites(Run(["finch", "wren", "owl", "heron"], per_class=24), ["north", "south <b>"])


def test_the_page_names_the_worst_group(birds: Run, tmp_path: Path):
    html = birds.write(tmp_path)
    page = Page(html)
    assert not page.wrong
    assert page.sections.index("groups") + 1 == page.sections.index("classes")
    part = html[html.index('id="groups"') : html.index('id="classes"')]
    shares = [float(share) for share in re.findall(r'class="num">([\d.]+)%', part)]
    assert len(shares) == 8
    assert shares == sorted(shares)
    assert f"with {shares[0]}% of 12 pictures right" in part
    assert "south &lt;b&gt;" in part
    assert "south <b>" not in part
    assert "too few" not in part


def test_small_groups_are_marked_and_come_last(tmp_path: Path):
    run = with_sites(Run(["finch", "wren"], per_class=12), ["north", "south"])
    html = run.write(tmp_path)
    part = html[html.index('id="groups"') : html.index('id="classes"')]
    assert part.count("(too few)") == 4
    assert "No group has 10 test pictures: nothing is said about the worst one." in part


def test_labels_have_groups_too(tmp_path: Path):
    run = with_sites(LabelRun(count=200), ["north", "south"])
    html = run.write(tmp_path)
    assert not Page(html).wrong
    part = html[html.index('id="groups"') : html.index('id="together"')]
    assert part.count('<th scope="row">') == 6
    assert "Balanced accuracy" in part


def test_without_groups_there_is_no_section(tmp_path: Path):
    assert "groups" not in Page(Run(["finch", "wren"]).write(tmp_path)).sections


def test_many_groups_are_folded(tmp_path: Path):
    run = with_sites(Run([f"bird {n}" for n in range(10)], per_class=24), ["north", "south"])
    html = run.write(tmp_path)
    part = html[html.index('id="groups"') : html.index('id="classes"')]
    assert f"<summary>{20 - FIRST} more</summary>" in part


def test_the_words_are_those_of_the_data_set(birds: Run, tmp_path: Path):
    from cbm.report.result import RunResult

    result = RunResult(tmp_path, None, birds.model, birds.bank, birds.data, birds.dataset, {})
    found = describe_groups(result)
    assert found.columns == ["site"]
    assert {group.value for group in found.first} == {"north", "south <b>"}
    assert found.values["groups"] == 8
    assert found.worst == found.first[0]
