import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import paint
from omegaconf import OmegaConf
from sklearn.svm import SVC
from torch import Tensor
from torch.nn.functional import normalize

from cbm.concepts import Concept, ConceptBank, distances, learn_cavs, load_bank, read_concept_folders
from cbm.concepts.candidates import cav_fidelity
from cbm.concepts.cav import _halves, majority_owners
from cbm.errors import UserError

DIM, NAMES = 24, ["striped", "round", "red"]


def planted(n: int = 600, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Features ``[N, D]`` that carry each concept along its own direction ``[A, D]``, and the truth ``[N, A]``."""
    g = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(DIM, len(NAMES), generator=g)).Q.T
    shared = 2 * torch.randn(DIM, generator=g)
    truth = (torch.rand(n, len(NAMES), generator=g) < 0.4).float()
    x = normalize(shared + 3 * truth @ directions + 0.5 * torch.randn(n, DIM, generator=g), dim=1)
    return x, truth, directions


def learn(x: Tensor, truth: Tensor, names: list[str] = NAMES, **settings) -> ConceptBank:
    return learn_cavs(x, truth, names, encoder="e", source="s", **settings)


def cav(bank: ConceptBank, name: str) -> dict:
    return bank.concepts[bank.index(name)].provenance["cav"]


def test_planted_directions_are_found():
    x, truth, directions = planted()
    bank = learn(x, truth)
    assert bank.texts == NAMES
    assert (bank.name, bank.source, bank.encoder) == ("cav", "s", "e")
    assert bank.directions().dtype == torch.float32
    assert torch.allclose(bank.directions().norm(dim=1), torch.ones(3), atol=1e-6)
    cosine = bank.directions() @ directions.T
    assert (cosine.diagonal() > 0.8).all()
    assert (cosine - torch.diag(cosine.diagonal())).abs().max() < 0.35
    assert all(concept.score > 0.95 for concept in bank.concepts)
    fresh, fresh_truth, _ = planted(n=900)  # the same directions, other pictures
    right = (distances(bank, fresh) > 0) == (fresh_truth == 1)
    assert right.float().mean() > 0.95


def test_random_labels_score_at_chance():
    x, _, _ = planted(2000)
    truth = (torch.rand(2000, 20, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    bank = learn(x, truth, [f"c{a}" for a in range(20)])
    scores = [concept.score for concept in bank.concepts]
    assert abs(sum(scores) / 20 - 0.5) < 0.04  # 20 x 200 held-out pictures: standard error 0.008
    assert all(cav(bank, text)["train_accuracy"] > 0.55 for text in bank.texts)


class Spy(SVC):
    """Remembers what it was fitted to and asked about."""

    def fit(self, features, targets):
        Spy.fitted, Spy.targets = features, targets
        Spy.machine = super().fit(features, targets)
        return self


def balanced_elsewhere(spy: type[Spy], x: Tensor, present: Tensor) -> tuple[int, float]:
    """Number of the rows that the machine was not fitted to, and its balanced accuracy on them."""
    mean, scale = x.double().mean(dim=0), (x.double() - x.double().mean(dim=0)).square().mean().sqrt()
    rows = ((x.double() - mean) / scale).numpy()
    fitted = {row.tobytes() for row in spy.fitted}
    assert len(fitted) == len(spy.fitted)  # nothing drawn twice
    held = np.array([row.tobytes() not in fitted for row in rows])
    said, true = spy.machine.decision_function(rows)[held] > 0, present.numpy()[held] == 1
    return int(held.sum()), float((said[true].mean() + (~said[~true]).mean()) / 2)


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> type[Spy]:
    monkeypatch.setattr("sklearn.svm.SVC", Spy)
    return Spy


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_distances_are_those_of_the_machine(spy: type[Spy], shift: float):
    x, truth, _ = planted()
    x = x.double() + shift
    bank = learn(x, truth[:, :1], ["striped"], per_concept=40)
    found = cav(bank, "striped")
    mean, scale = x.mean(dim=0), (x - x.mean(dim=0)).square().mean().sqrt()
    expected = spy.machine.decision_function(((x - mean) / scale).numpy()) / (np.linalg.norm(spy.machine.coef_) / scale)
    assert np.allclose(distances(bank, x)[:, 0].numpy(), expected, atol=1e-5)
    assert np.allclose((x.numpy() @ bank.directions()[0].double().numpy()) + found["intercept"] / found["norm"],
                       expected, atol=1e-5)  # fmt: skip
    trained = torch.from_numpy(spy.fitted) * scale + mean
    m = distances(bank, trained)[:, 0].numpy()
    margins = found["margins"]
    assert margins["max"] == pytest.approx(m.max(), abs=1e-5)
    assert margins["min"] == pytest.approx(m.min(), abs=1e-5)
    assert margins["mean_positive"] == pytest.approx(m[m > 0].mean(), abs=1e-5)
    assert margins["std_negative"] == pytest.approx(m[m < 0].std(), abs=1e-5)
    assert margins["quantile_10"] == pytest.approx(np.quantile(m, 0.1), abs=1e-5)
    assert margins["quantile_90"] == pytest.approx(np.quantile(m, 0.9), abs=1e-5)
    assert found["train_accuracy"] == pytest.approx(np.mean((m > 0) == (spy.targets > 0)))


def test_no_picture_is_in_both_halves(spy: type[Spy]):
    x, truth, _ = planted(60)  # far fewer than asked for
    bank = learn(x, truth[:, :1], ["striped"], per_concept=100)
    present = int(truth[:, 0].sum())
    found = cav(bank, "striped")
    assert (found["positives"], found["negatives"]) == ((present + 1) // 2, (60 - present + 1) // 2)
    left, accuracy = balanced_elsewhere(spy, x, truth[:, 0])
    assert left == 60 - found["positives"] - found["negatives"]
    assert found["heldout_accuracy"] == pytest.approx(accuracy)  # of all others, and of no training picture


def test_held_out_accuracy_is_balanced(spy: type[Spy]):
    x, _, _ = planted(600)
    truth = (torch.rand(600, 1, generator=torch.Generator().manual_seed(2)) < 0.05).float()
    score = learn(x, truth, ["rare"], svm_c=10.0).concepts[0].score
    train, held = _halves([np.flatnonzero(truth[:, 0] == side) for side in (1, 0)], 100, 0, "rare")
    mean, scale = x.double().mean(dim=0), (x.double() - x.double().mean(dim=0)).square().mean().sqrt()
    said = [spy.machine.decision_function(((x[rows].double() - mean) / scale).numpy()) > 0 for rows in held]
    hit, rejected = said[0].mean(), (~said[1]).mean()
    assert len(spy.fitted) == sum(map(len, train))
    assert score == pytest.approx((hit + rejected) / 2)
    assert len(held[1]) > 3 * len(held[0])
    assert abs(hit - rejected) > 0.2  # so that accuracy over all pictures is another number


def test_counts_are_capped():
    x, truth, _ = planted(600)
    found = cav(learn(x, truth, per_concept=30), "round")
    assert (found["positives"], found["negatives"]) == (30, 30)


def test_settings_are_independent_of_scale_and_encoder():
    x, truth, _ = planted()
    near = learn(x, truth, svm_c=0.01)
    far = learn(10 * x, truth, svm_c=0.01)
    assert torch.allclose(near.directions(), far.directions(), atol=1e-3)
    assert not torch.allclose(near.directions(), learn(x, truth, svm_c=10.0).directions(), atol=1e-2)


def test_same_seed_same_vectors_whatever_else_is_learned():
    x, truth, _ = planted()
    bank, again = learn(x, truth), learn(x, truth)
    assert torch.equal(bank.directions(), again.directions())
    assert bank.concepts == again.concepts
    fewer = learn(x, truth[:, [2, 0]], ["red", "striped"])
    assert torch.equal(fewer.directions(), bank.directions()[[2, 0]])
    assert not torch.equal(learn(x, truth, seed=1).directions(), bank.directions())
    renamed = learn(x, truth[:, :1], ["dotted"])
    assert not torch.equal(renamed.directions()[0], bank.directions()[0])


def test_unknown_truth_is_not_learned_from():
    x, truth, directions = planted()
    unknown = torch.arange(len(x)) % 2 == 0
    corrupt = torch.where(unknown, 1 - truth[:, 0], truth[:, 0])
    masked = torch.where(unknown, float("nan"), corrupt)
    bank = learn(x, torch.stack([corrupt, masked], dim=1), ["corrupt", "masked"])
    assert (bank.directions() @ directions[0])[1] > 0.8
    assert bank.concepts[0].score < 0.7 < 0.95 < bank.concepts[1].score


def test_scarce_concepts_are_left_out_and_the_rest_learned(caplog: pytest.LogCaptureFixture):
    x, truth, _ = planted()
    truth[:, 0] = 0
    truth[:3, 0] = 1
    truth[4:, 1] = 1
    truth[:4, 1] = 0
    with caplog.at_level(logging.INFO, "cbm.concepts.cav"):
        bank = learn(x, truth, groups={"shape": ["round"], "colour": ["red"]})
    assert bank.texts == ["round", "red"]
    assert [concept.group for concept in bank.concepts] == ["shape", "colour"]
    assert [dropped.text for dropped in bank.dropped] == ["striped"]
    assert bank.dropped[0].reason == "3 pictures with it and 597 without: needs 4 of each or more"
    assert cav(bank, "round")["negatives"] == 2
    assert "2 CAVs from s (1 left out)" in caplog.text
    worst = min(bank.concepts, key=lambda concept: concept.score)
    assert f"worst {worst.score:.3f} for '{worst.text}'" in caplog.text


def test_few_positives_against_many_are_still_recognised():
    x, truth, _ = planted(2000)
    rare = truth[:, 0].nonzero().flatten()[24:]
    truth[rare, 0] = float("nan")
    score = learn(x, truth[:, :1], ["striped"], svm_c=0.001).concepts[0].score
    assert score > 0.8  # balanced accuracy; unweighted, the plane lies beyond all pictures and this is 0.5


def test_pictures_that_look_the_same():
    x, truth, _ = planted()
    with pytest.raises(UserError, match="no concept can be learned from 's': all 3 are left out, first: 'striped'"):
        learn(x[:1].expand(len(x), -1), truth)


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (["red", "round", "red"], {}, "concept 'red' of 's' is there 2 times"),
        (NAMES, {"svm_c": 0}, "svm_c=0 must be above 0"),
        (NAMES, {"per_concept": 1}, "per_concept=1 at least 2"),
    ],
)
def test_bad_settings(names: list[str], settings: dict, message: str):
    x, truth, _ = planted(50)
    with pytest.raises(UserError, match=message):
        learn(x, truth, names, **settings)


def test_nothing_known():
    x, truth, _ = planted(50)
    with pytest.raises(UserError, match="'striped' \\(0 pictures with it and 0 without"):
        learn(x, torch.full_like(truth, float("nan")))
    with pytest.raises(ValueError, match="truth is"):
        learn(x, truth[:, :2])


def test_save_and_load(tmp_path: Path):
    x, truth, _ = planted()
    truth[:, 2] = 0
    bank = learn(x, truth, progress=True)
    bank.save(tmp_path)
    json.loads((tmp_path / "bank.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} in bank.json"))
    again = load_bank(tmp_path)
    assert again.concepts == bank.concepts
    assert again.dropped == bank.dropped
    assert torch.equal(distances(again, x), distances(bank, x))


def test_distances_of_phrases_are_similarities():
    x, truth, _ = planted()
    learned = learn(x, truth)
    phrases = ConceptBank("b", "b", (Concept("a"), learned.concepts[1]), "e", learned.directions()[:2])
    found = distances(phrases, x)
    assert torch.equal(found[:, 0], (x @ learned.directions()[:2].T)[:, 0])
    assert torch.allclose(found[:, 1], distances(learned, x)[:, 1])
    assert distances(phrases, x.double()).dtype == torch.float64


def pictures(root: Path, *folders: str, count: int = 2) -> Path:
    for folder in folders:
        for i in range(count):
            paint(root / folder / f"{i}.jpg", (90, 90, 90), seed=i, size=4)
    return root


def test_positives_and_negatives(tmp_path: Path):
    root = pictures(tmp_path, *(f"{c}/{side}" for c in ("sky", "grass") for side in ("positives", "negatives")))
    paint(root / "sky" / "positives" / "more" / "9.png", (0, 0, 255), 0, 4)
    names, split = read_concept_folders(root)
    assert names == ["grass", "sky"]
    assert split.labels.tolist() == [0] * 9
    assert split.concepts.dtype == np.float32
    by_name = dict(zip(split.images.names, split.concepts.tolist()))
    assert by_name["sky/positives/more/9.png"] == pytest.approx([np.nan, 1], nan_ok=True)
    assert by_name["sky/negatives/0.jpg"] == pytest.approx([np.nan, 0], nan_ok=True)
    assert by_name["grass/negatives/1.jpg"] == pytest.approx([0, np.nan], nan_ok=True)
    assert split.images.open(0).size == (4, 4)


def test_one_folder_per_concept(tmp_path: Path):
    names, split = read_concept_folders(pictures(tmp_path, "sky", "grass", "sand", ".hidden"))
    assert names == ["grass", "sand", "sky"]
    assert split.concepts.tolist() == [[1, 0, 0]] * 2 + [[0, 1, 0]] * 2 + [[0, 0, 1]] * 2


def test_from_folders_to_concepts(tmp_path: Path):
    for name, colour in (("blue", (0, 0, 250)), ("red", (250, 0, 0))):
        for i in range(8):
            paint(tmp_path / name / f"{i}.png", colour, i, 4)
    names, split = read_concept_folders(tmp_path)
    x = normalize(torch.stack([torch.tensor(np.array(split.images.open(i)).mean((0, 1))) for i in range(16)]), dim=1)
    assert [c.score for c in learn(x, torch.from_numpy(split.concepts), names).concepts] == [1, 1]


def test_folders_that_are_not_there(tmp_path: Path):
    root = pictures(tmp_path / "broden", "sky/positives", "sky/negatives", "grass/positives")
    with pytest.raises(UserError, match="no folder of concept pictures .*did you mean 'broden'"):
        read_concept_folders(tmp_path / "brodn")
    with pytest.raises(UserError, match="concept 'grass' has no folder '.*grass/negatives'"):
        read_concept_folders(root)
    (root / "grass" / "negatives").mkdir()
    with pytest.raises(UserError, match="concept 'grass': folder '.*grass/negatives' has no images"):
        read_concept_folders(root)
    with pytest.raises(UserError, match="two concept folders or more, found only 'sky'"):
        read_concept_folders(pictures(tmp_path / "plain", "sky"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="found none"):
        read_concept_folders(tmp_path / "empty")
    (tmp_path / "plain" / "grass").mkdir()
    with pytest.raises(UserError, match="concept 'grass': folder .* has no images"):
        read_concept_folders(tmp_path / "plain")


def test_majority_owners_counts_what_is_known():
    truth = torch.tensor([[1, 1], [1, 0], [0, torch.nan], [1, torch.nan], [0, torch.nan], [0, torch.nan]])
    owners = majority_owners(truth, torch.tensor([0, 0, 0, 1, 1, 2]), 3)
    assert owners.tolist() == [[True, False], [False, False], [False, False]]  # two of three; ties and ignorance: no


def test_majority_owners_of_labels_are_asked_of_the_images_that_have_them():
    truth = torch.tensor([[1, 1], [1, 0], [0, torch.nan], [1, torch.nan]])
    labels = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, torch.nan], [0.0, 0.0]])
    assert majority_owners(truth, labels, 2).tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize("positives", [60, 25])
def test_the_published_vectors_are_those_of_a_plain_support_vector_machine(positives: int):
    """On the same images, also where one side has fewer: uncentred, unscaled, without class weights."""
    x, truth, _ = planted(400)
    rows = truth[:, 0].nonzero()[positives * 2 :, 0]
    truth[rows, 0] = float("nan")
    bank = learn(x, truth, per_concept=50, svm_c=0.1, fidelity="released")
    found = [np.flatnonzero(truth[:, 0].numpy() == value) for value in (1, 0)]
    sides, _ = _halves(found, 50, 0, NAMES[0])
    machine = SVC(kernel="linear", C=0.1)
    machine.fit(np.concatenate([x[side].numpy() for side in sides]), np.repeat([1, -1], [len(s) for s in sides]))
    vector = torch.from_numpy(machine.coef_[0])
    assert float(bank.directions()[0].double() @ vector / vector.norm()) == pytest.approx(1, abs=1e-6)
    about = cav(bank, NAMES[0])
    assert about["norm"] == pytest.approx(float(vector.norm()), rel=1e-5)
    assert about["intercept"] == pytest.approx(float(machine.intercept_[0]), abs=1e-5)
    repaired = learn(x, truth, per_concept=50, svm_c=0.1)
    assert float(repaired.directions()[0].double() @ vector / vector.norm()) < 0.999


@pytest.mark.parametrize(
    ("method", "fidelity", "said", "expected"),
    [
        ("posthoc", "repaired", None, "repaired"), ("posthoc", "released", None, "released"),
        ("posthoc", "paper", None, "released"), ("posthoc", "released", "repaired", "repaired"),
        ("labo", "paper", None, "repaired"), ("sparse", None, "released", "released"),
    ],
)  # fmt: skip
def test_which_vectors_a_method_gets(method: str, fidelity: str | None, said: str | None, expected: str):
    cfg = OmegaConf.create({"method": {"name": method, "fidelity": fidelity}, "concepts": {"cav": {"fidelity": said}}})
    assert cav_fidelity(cfg) == expected
    cfg.concepts.cav.fidelity = "relesed"
    with pytest.raises(UserError, match="concepts.cav.fidelity=relesed: did you mean 'released'"):
        cav_fidelity(cfg)


def test_the_difference_of_means_is_a_plane_half_way():
    """FastCAV by hand; where a concept is rare, its plane stays between the two means and does not follow the many."""
    g = torch.Generator().manual_seed(0)
    truth = (torch.arange(2000) < 100).float()[:, None]
    x = normalize(torch.eye(DIM)[0] + truth * torch.eye(DIM)[1] + 0.2 * torch.randn(2000, DIM, generator=g), dim=1)
    bank = learn(x, truth, ["rare"], fit="fast", per_concept=10_000)
    about = cav(bank, "rare")
    train, held = _halves([np.arange(100), np.arange(100, 2000)], 10_000, 0, "rare")
    means = [x[rows].double().mean(dim=0) for rows in train]
    away = means[0] - means[1]
    expected = (x.double() - (means[0] + means[1]) / 2) @ away / away.norm()
    assert torch.allclose(distances(bank, x.double())[:, 0], expected, atol=1e-6)
    right = [(expected[held[0]] > 0).double().mean(), (expected[held[1]] <= 0).double().mean()]
    assert about["heldout_accuracy"] == pytest.approx(float(sum(right) / 2))
    assert about["heldout_accuracy"] > 0.9
    assert about["fit"] == "fast"
    assert "svm_c" not in about


def test_auto_takes_the_means_for_few_images_only():
    x, truth, _ = planted(400)
    truth[:, 0] = torch.where(torch.arange(400) < 30, truth[:, 0], torch.nan)
    bank = learn(x, truth, fit="auto")
    assert [cav(bank, name).get("fit") for name in NAMES] == ["fast", None, None]
    alone = learn(x, truth)
    assert torch.equal(bank.embeddings[1:], alone.embeddings[1:])
    with pytest.raises(UserError, match="concepts.cav.fit=fats: did you mean 'fast'"):
        learn(x, truth, fit="fats")
