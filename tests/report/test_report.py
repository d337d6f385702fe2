"""The report: sums that add up, and one page that stands on its own for every kind of run."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from reported_run import Run
from written_page import Page, configuration

from cbm.data.dataset import Split
from cbm.data.features import FeatureSplit
from cbm.data.images import ImageArray, ImageFiles
from cbm.layers import Activation, ConceptBottleneck, Cube, Largest, LinearHead, TopK, predict_logits
from cbm.report.classes import select_classes
from cbm.report.command import reproduce_command
from cbm.report.explanations import Breakdown, Contribution, blame, confident_mistakes, explain, typical_rows
from cbm.report.templates import load_template


def with_activation(run: Run, activation: Activation | None, mixing: torch.Tensor | None = None) -> Run:
    """The same run with another bottleneck."""
    head = LinearHead(run.model.weights(), run.model.head.bias)
    model = ConceptBottleneck(run.model.concepts, head, activation=activation, mixing=mixing)
    run.model = model.calibrate(run.data.train.x).requires_grad_(False)
    return run


@pytest.fixture(scope="module")
def birds() -> Run:
    return Run(["finch", "wren", "owl", "heron"])


def test_contributions_sum_to_the_logit(birds: Run):
    x, classes = birds.data.test.x, birds.data.test.y
    logits = predict_logits(birds.model, x)
    for n, part in enumerate(explain(birds.model, birds.bank.texts, x, classes)):
        total = part.base + sum(c.value for c in part.shown) + part.others
        assert total == pytest.approx(float(logits[n, classes[n]]), abs=1e-5)
        assert part.total == pytest.approx(total, abs=1e-5)
        assert not part.passes_by
        assert part.others_count + len(part.shown) == len(birds.bank)


def test_contributions_sum_to_the_difference_of_logits(birds: Run):
    x = birds.data.test.x
    logits = predict_logits(birds.model, x)
    first, second = logits.topk(2, dim=1).indices.T
    for n, part in enumerate(explain(birds.model, birds.bank.texts, x, first, second)):
        total = part.base + sum(c.value for c in part.shown) + part.others
        assert total == pytest.approx(float(logits[n, first[n]] - logits[n, second[n]]), abs=1e-5)
        values = [c.value for c in part.shown]
        assert values == [v for v in values if v > 0] + [v for v in values if v < 0]


def test_what_does_not_pass_through_the_concepts_is_said(birds: Run):
    class WithResidual(ConceptBottleneck):
        def forward(self, x):
            return super().forward(x) + 3.0

    model = WithResidual(birds.model.concepts, birds.model.head, scale=12.0, reference=birds.model.reference)
    part = explain(model, birds.bank.texts, birds.data.test.x[:1], torch.tensor([0]))[0]
    assert part.passes_by
    assert part.outside == pytest.approx(3.0, abs=1e-4)


def test_blame_names_what_was_seen_and_what_was_missed():
    causes = [Contribution("long legs", 2.0, 1.5), Contribution("short beak", 1.0, -2.0), Contribution("eye", 0.1, 1.0)]
    sentence = blame(Breakdown(0.1, causes, 0.0, 0, 0.0, 3.2), "heron", "wren")
    assert sentence.startswith("Called “heron” rather than “wren” because the picture scores ")
    assert sentence.endswith("high on “long legs” and low on “short beak”.")
    assert "head start" in blame(Breakdown(5.0, causes, 0.0, 0, 0.0, 8.1), "heron", "wren")
    assert "no single concept" in blame(Breakdown(0.0, [], 0.2, 9, 0.0, 0.2), "heron", "wren")


def test_examples_are_typical_and_mistakes_are_confident():
    probabilities = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8], [0.95, 0.05], [0.55, 0.45]])
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    assert typical_rows(probabilities, labels, limit=2) == [2, 3]
    assert confident_mistakes(probabilities, labels) == [4, 5]
    assert confident_mistakes(probabilities, labels, per_pair=1) == [4]


def test_many_classes_are_cut_to_the_worst_and_the_best():
    accuracies = torch.tensor([0.5, float("nan"), 0.1, 0.9, 0.4])
    assert select_classes(accuracies, 5) == [0, 1, 2, 3, 4]
    assert select_classes(accuracies, 2) == [2, 3]


def test_page_has_its_sections_and_stands_on_its_own(birds: Run, tmp_path: Path):
    html = birds.write(tmp_path)
    page = Page(html)
    assert not page.wrong
    assert not page.open
    assert page.sections == [
        "mistakes", "examples", "evidence", "accuracy", "classes", "figures", "truth", "concepts", "run",
    ]  # fmt: skip
    assert {file.stem for file in (tmp_path / "figures").glob("*.svg")} >= {"calibration", "concept_correlation"}
    assert all(target.startswith(("data:image/", "#")) for target in page.asked)
    assert "url(" not in html
    assert "@import" not in html
    assert page.alts
    assert all(page.alts)
    assert "The concepts carry the decision: names is well" in html
    for expected in ("a detail", "red belly", "not visual: cost", "zero_shot", "no better"):
        assert expected in html, expected


def test_model_without_concepts(birds: Run, tmp_path: Path):
    html = birds.write(tmp_path, concepts=False)
    page = Page(html)
    assert page.sections == ["mistakes", "examples", "accuracy", "classes", "figures", "run"]
    assert not page.wrong
    assert "This model has no concepts" in html


def test_markup_in_names_is_text(tmp_path: Path):
    names = ["<script>alert(1)</script>", 'a"onload="x', "owl & <b>co</b>"]
    texts = ["<img src=http://evil.example/x.png>", *(f"<i>{k}</i>" for k in range(7))]
    html = Run(names, texts).write(tmp_path)
    page = Page(html)
    assert not page.wrong
    assert "<script>alert" not in html
    assert "<b>co</b>" not in html
    assert "<i>0" not in html
    assert not any("evil" in target for target in page.asked)
    assert "&lt;script&gt;alert" in html


def test_pages_hold_no_commands_and_no_turned_letters(tmp_path: Path):
    """Neither for whoever prints a page on a terminal, nor for whoever reads it."""
    file = tmp_path / "page.html"
    file.write_text('<p title="{{ text }}">{{ text }}\n{{ text|clip(9) }}</p>')
    page = load_template(file).render(text="a\x1b[31m\u202e<b>\x9b")
    assert page.startswith('<p title="a\ufffd[31m\ufffd&lt;b&gt;\ufffd">a\ufffd[31m\ufffd&lt;b&gt;\ufffd\n')
    assert not set("\x1b\x9b\u202e") & set(page)


def test_missing_picture_leaves_a_placeholder(birds: Run, tmp_path: Path):
    run = Run(["finch", "wren"])
    missing = Split(ImageFiles(tmp_path, run.data.test.names), run.dataset.splits["test"].labels)
    run.dataset = replace(run.dataset, splits={**run.dataset.splits, "test": missing})
    (tmp_path / "0.png").write_bytes(b"not a picture")
    html = run.write(tmp_path)
    assert "picture could not be read" in html
    assert not Page(html).wrong


def test_many_classes_and_long_names_stay_small(tmp_path: Path):
    names = [f"class {k} " + "very " * 400 + "long" for k in range(300)]
    html = Run(names, per_class=3, side=160).write(tmp_path)
    assert len(html) < 6e6
    assert "<b>A selection:</b> 40 of 300 classes" in html
    page = Page(html)
    assert not page.wrong
    assert 1 <= len(page.alts) <= 24 + 4  # pictures, and figures


def test_two_classes_all_right_and_all_wrong(tmp_path: Path):
    run = Run(["finch", "wren"])
    test = run.data.test
    predicted = predict_logits(run.model, test.x).argmax(1)
    run.data.splits["test"] = FeatureSplit(test.x, predicted, test.names, test.concepts)
    assert "No mistakes" in run.write(tmp_path)
    run.data.splits["test"] = FeatureSplit(test.x, 1 - predicted, test.names, test.concepts)
    assert "No test picture is classified correctly" in run.write(tmp_path)


def test_command_repeats_what_is_not_a_default():
    command = reproduce_command(configuration())
    assert command.startswith("python train.py method=labo dataset=folder encoder=vit_b32 ")
    assert "'dataset.root=\"my pictures\"'" in command
    assert "shots=4" in command
    assert "concepts.source=concepts/birds.json" in command
    assert "trainer" not in command
    assert "seed" not in command


@pytest.fixture(scope="module")
def gated() -> Run:
    run = Run(["finch", "wren", "owl", "heron"])
    offset = (run.data.train.x @ run.bank.directions().T).mean(0)
    return with_activation(run, TopK(offset, 3), torch.eye(len(run.bank)))


def test_report_of_a_gated_model_says_what_a_picture_uses(gated: Run, tmp_path: Path):
    html = gated.write(tmp_path)
    assert not Page(html).wrong
    for expected in (
        "<dt>Per picture</dt><dd>the 3 concepts with the largest scores</dd>",
        "<dt>Learned layer</dt><dd>10 × 10 weights, 10 not zero</dd>",
        "no concept used", "Concepts that a picture does not use add nothing", "Concepts per picture",
        "Effective concepts per picture", "Hoyer sparsity", "Names kept", "Agreement with the names",
        "Texts per concept", "“weight” is what one unit of cosine adds",
    ):  # fmt: skip
        assert expected in html, expected
    for wrong in (
        "every concept at its training mean",
        "Each concept counts from its mean",
        "average training picture",
    ):
        assert wrong not in html, wrong


def test_report_of_a_linear_model_says_where_its_sums_start(birds: Run, tmp_path: Path):
    html = birds.write(tmp_path)
    assert "every concept at its training mean" in html
    assert "Each concept counts from its mean over the training pictures" in html
    for wrong in ("no concept used", "Per picture</dt>", "layer</dt>", "does not use"):
        assert wrong not in html, wrong


@pytest.mark.parametrize(
    ("activation", "said", "unit"),
    [
        (TopK(torch.zeros(10), 1), "the concept with the largest score", "one unit of cosine"),
        (Largest(torch.zeros(10)), "the concept with the largest score", "having the largest score"),
        (Cube(torch.zeros(10)), "cubes of the scores", "one unit of the concept&#39;s cubed score"),
    ],
)
def test_other_activations(activation: Activation, said: str, unit: str, tmp_path: Path):
    run = with_activation(Run(["finch", "wren", "owl", "heron"]), activation)
    html = run.write(tmp_path)
    assert f"<dt>Per picture</dt><dd>{said}</dd>" in html
    assert f"“weight” is what {unit} adds" in html
    assert ("no concept used" in html) == activation.rests_at_zero
    assert not Page(html).wrong


def test_concepts_that_the_gate_leaves_out_are_never_named(gated: Run):
    x = gated.data.test.x
    used = gated.model.activations(x) != 0
    logits = predict_logits(gated.model, x)
    first, second = logits.topk(2, dim=1).indices.T
    for n, part in enumerate(explain(gated.model, gated.bank.texts, x, first, second)):
        named = {gated.bank.texts.index(c.text) for c in part.shown}
        assert named <= set(used[n].nonzero().flatten().tolist())
        assert len(part.shown) + part.others_count <= 3
        assert part.base == pytest.approx(float(gated.model.head.bias[first[n]] - gated.model.head.bias[second[n]]))
        assert part.base + sum(c.value for c in part.shown) + part.others == pytest.approx(part.total, abs=1e-5)
        if all(c.level > 0 for c in part.shown):
            assert "low on" not in blame(part, "finch", "wren")


def test_concept_that_no_training_picture_uses_has_no_level(gated: Run, tmp_path: Path):
    model = gated.model
    assert bool((model.spread > 0).all())
    unseen = ConceptBottleneck(
        model.concepts, model.head, activation=model.activation, spread=torch.zeros_like(model.spread)
    ).requires_grad_(False)
    parts = explain(unseen, gated.bank.texts, gated.data.test.x, gated.data.test.y)
    assert not any(c.comparable for part in parts for c in part.shown)
    run = Run(["finch", "wren", "owl", "heron"])
    run.model = unseen
    html = run.write(tmp_path)
    assert "no training picture uses it" in html
    assert "+inf" not in html


def test_the_largest_class_alone_and_macro_where_classes_differ(tmp_path: Path):
    run = Run(["a", "b", "c"])
    page = run.write(tmp_path / "equal")
    assert "largest class alone 33.3%" in page
    assert "<span>mean of the classes</span>" not in page
    rows = np.array([*range(6), 6, 12])  # six of the first class, one of each other
    run.data.splits["test"] = run.data.test.take(rows)
    images = ImageArray(run.dataset.splits["test"].images.pixels[rows], run.data.test.names)
    run.dataset.splits["test"] = Split(images, run.data.test.y.numpy())
    page = run.write(tmp_path / "unequal")
    assert "largest class alone 75.0%" in page
    assert "<span>mean of the classes</span>" in page


def test_what_could_not_be_read_or_is_not_tested_is_said(tmp_path: Path):
    run = Run(["a", "b", "c"])
    page = run.write(tmp_path)
    assert "could not be read" not in page
    assert "No test picture shows" not in page
    rows = np.arange(12)  # none of the last class
    run.data.splits["test"] = run.data.test.take(rows)
    images = ImageArray(run.dataset.splits["test"].images.pixels[rows], run.data.test.names)
    run.dataset.splits["test"] = Split(images, run.data.test.y.numpy())
    run.data = replace(run.data, skipped={"test": ["/home/me/pictures/odd.png"], "train": []})
    page = run.write(tmp_path, data={"data/n_test": 12.0, "data/n_skipped_test": 1.0, "data/n_skipped_train": 0.0})
    assert "1 of 13 test images could not be read and is not counted (&#39;odd.png&#39;)." in page
    assert "No test picture shows “c”." in page
    assert not Page(page).wrong


def test_page_says_nothing_about_this_computer(birds: Run, tmp_path: Path):
    run = Run(["finch", "wren"])
    names = [f"/home/me/pictures/{n}.png" for n in range(12)]
    images = ImageArray(run.dataset.splits["test"].images.pixels, names)
    run.dataset.splits["test"] = Split(images, run.data.test.y.numpy())
    run.bank = replace(run.bank, source="/home/me/lists/bank.json")
    cfg = configuration()
    cfg.dataset.root, cfg.concepts.source = "/home/me/pictures", "~/lists/bank.json"
    cfg.encoder.model = "local-dir:/home/me/clip"
    cfg.run_dir, cfg.cache = str(tmp_path), "/home/me/cache"
    html = run.write(tmp_path, cfg=cfg)
    for private in ("/home", "~/", str(tmp_path)):
        assert private not in html
    for shown in ("dataset.root=pictures", "local-dir:clip", "(bank.json)", "only the last part is shown"):
        assert shown in html, shown
    assert "only the last part is shown" not in birds.write(tmp_path)


def test_owners_that_the_method_chose_are_not_called_its_own(birds: Run, tmp_path: Path):
    assert "its own concept" in birds.write(tmp_path)
    run = Run(["finch", "wren", "owl", "heron"])
    run.bank = run.bank.owned_by(run.bank.owners(run.data.classes), run.data.classes, "labo")
    html = run.write(tmp_path)
    assert "The bank names no classes" in html
    assert "chosen for another class" in html
    assert re.search(r"<em>chosen for (finch|wren|owl|heron)</em>", html)
    for wrong in ("its own concept", ">own: ", "fewest own", "owned by no class", "borrowed"):
        assert wrong not in html, wrong


def test_full_report_is_unfolded(birds: Run, tmp_path: Path):
    fold = '<details class="fold">'
    assert birds.write(tmp_path).count(fold) == 7
    cfg = configuration()
    for form, count in ((True, 7), ("short", 7), ("full", 0)):  # old runs say true
        cfg.report = form
        assert birds.write(tmp_path, cfg=cfg).count(fold) == count
