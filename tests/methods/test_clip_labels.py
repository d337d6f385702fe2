"""CLIP in the place of a detector: what stays with a class, and what counts as asked."""

from dataclasses import replace

import numpy as np
import torch
from detected_pictures import spoken

from cbm.methods.clip_labels import BEST, asked_by_class, clip_scores, keep_shown, seen_by_clip, shown_by_class


def test_the_four_best_pictures_of_a_class_against_a_loop():
    data, bank = spoken()
    scores = clip_scores(bank, data, centred=False)["train"]
    shown = shown_by_class(scores, data.train, 11)  # the last has no picture
    for c in (0, 7):
        rows = data.train.y.numpy() == c
        expected = np.sort(scores.double().numpy()[rows], axis=0)[-BEST:].mean(axis=0)
        np.testing.assert_allclose(shown[c].numpy(), expected, atol=1e-6)
    assert bool((shown[10] == -torch.inf).all())
    many = replace(data.train, y=torch.nn.functional.one_hot(data.train.y, 10).float())
    torch.testing.assert_close(shown_by_class(scores, many, 10), shown[:10])


def test_owners_that_do_not_show_a_concept_lose_it():
    data, bank = spoken()
    owners = bank.owners(data.classes)
    shown = torch.where(owners, 1.0, 5.0)  # classes that do not own a concept count for nothing
    shown[:, 2] = -1.0
    first = int(owners[:, 5].nonzero()[0])
    shown[first, 5] = -1.0
    shown[:, 6] = -1.0
    general = replace(bank, concepts=(*bank.concepts[:6], replace(bank.concepts[6], classes=()), *bank.concepts[7:]))
    shown[9, 6] = 1.0  # one class is enough for what is every class's
    kept = keep_shown(general, data.classes, shown, 0.5)
    assert "thing 2" not in kept.texts
    assert kept.dropped[0].reason == "not seen: its classes' best pictures score -1.00, wanted 0.5"
    assert kept.dropped[0].classes == bank.concepts[2].classes
    left = kept.concepts[kept.index("thing 5")].classes
    assert left == tuple(name for name in bank.concepts[5].classes if name != data.classes[first])
    assert kept.concepts[kept.index("thing 6")].classes == ()


def test_scores_are_asked_of_the_class_alone_and_owners_stay_evidence_where_all_stand():
    data, bank = spoken()
    found, detections = seen_by_clip(bank, data, threshold=0.0, centred=True, sharing=None)
    owners = bank.owners(data.classes)
    for name in ("train", "val"):
        torch.testing.assert_close(~detections.scores[name].isnan(), owners[data.splits[name].y])
    assert not found.owners_chosen
    shown = shown_by_class(clip_scores(bank, data, centred=True)["train"], data.train, len(data.classes))
    half = float(shown[owners].median())
    strict, _ = seen_by_clip(bank, data, threshold=half, centred=True, sharing=None)
    assert int(strict.owners(data.classes).sum()) == int((shown[owners] >= half).sum()) < int(owners.sum())
    assert strict.owners_chosen


def test_scores_from_the_median_have_one_scale():
    data, bank = spoken()
    scores = clip_scores(bank, data, centred=True)["train"]
    torch.testing.assert_close(scores.median(dim=0).values, torch.zeros(len(bank)), atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.std(dim=0), torch.ones(len(bank)), atol=1e-4, rtol=0)
    detections = asked_by_class({"train": scores}, bank, data)
    assert detections.says_asked
