"""The table of slices on the page: a planted one is named, with its mistakes; nothing without mistakes or concepts."""

from pathlib import Path

import torch
from reported_run import Run
from written_page import Page

from cbm.report.slices import CONCEPTS, used_concepts


def planted() -> Run:
    """A run whose pictures with a red belly carry another label in seven of eight."""
    run = Run(["finch", "wren", "owl <b>", "heron"], per_class=60)
    for split in run.data.splits.values():
        red = torch.arange(len(split)) % 4 == 0
        split.concepts = torch.stack([red.float(), (torch.arange(len(split)) % 3 == 0).float()], dim=1)
        said = run.model.logits(split.x).argmax(dim=1)
        moved = red & (torch.arange(len(split)) % 32 != 0)
        split.y = torch.where(moved, (said + 1) % 4, said)
    run.dataset.splits["test"].labels[:] = run.data.test.y.numpy()
    return run


def test_the_page_names_what_mistakes_have_in_common(tmp_path: Path):
    run = planted()
    page = Page(html := run.write(tmp_path))
    assert not page.wrong
    part = html[html.index('id="slices"') : html.index('id="classes"')]
    assert "red belly" in part
    assert "is present" in part
    assert "the test pictures confirm" in part
    assert part.count("data:image/png;base64") >= 4
    wrong = run.model.logits(run.data.test.x).argmax(dim=1) != run.data.test.y
    rate = 100 * float(wrong[run.data.test.concepts[:, 0] == 1].double().mean())
    assert f"{rate:.1f}%" in part


def test_without_mistakes_or_concepts_there_is_no_section(tmp_path: Path):
    run = Run(["finch", "wren"], per_class=30)
    for split in run.data.splits.values():
        split.y = run.model.logits(split.x).argmax(dim=1)
    assert 'id="slices"' not in run.write(tmp_path)
    assert 'id="slices"' not in planted().write(tmp_path, concepts=False)


def test_only_used_concepts_name_slices():
    run = Run(["finch", "wren"], per_class=4)
    weights = run.model.weights()
    weights[:, 0] = 0
    model = run.model.with_weights(weights, run.model.biases())
    assert 0 not in used_concepts(model)
    assert len(used_concepts(model)) == min(CONCEPTS, weights.shape[1] - 1)
