"""Phrases with embeddings that somebody else made: matched by name or by order, never by accident."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from cbm.concepts import load_bank, read_bank
from cbm.concepts.prepare import prepare_bank
from cbm.concepts.vectors import class_vectors_bank, embedded_by, width_fits
from cbm.errors import UserError

V = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
UNIT = torch.nn.functional.normalize(torch.from_numpy(V), dim=1)
PHRASES = {"cat": ["long whiskers", "Soft fur"], "dog": ["a wet nose", "soft fur"]}


@pytest.fixture
def phrases(tmp_path: Path) -> Path:
    (tmp_path / "phrases.json").write_text(json.dumps(PHRASES))
    return tmp_path / "phrases.json"


def test_names_with_vectors_are_a_bank(tmp_path: Path):
    names = np.array(["red_apple", "Red apple", "pear", "fig"])
    np.savez(tmp_path / "w.npz", names=names, vectors=V)
    bank = read_bank(tmp_path / "w.npz")
    assert bank.texts == ["red apple", "pear", "fig"]
    assert torch.allclose(bank.directions(), UNIT[[0, 2, 3]])
    assert bank.encoder is None
    np.savez(tmp_path / "n.npz", vectors=V)
    with pytest.raises(UserError, match="but no names: add an array 'names', or say .* concepts.embeddings=FILE"):
        read_bank(tmp_path / "n.npz")
    (tmp_path / "list.txt").write_text("a pear\n")
    with pytest.raises(UserError, match="concepts.key=x: .* holds phrases"):
        read_bank(tmp_path / "list.txt", "x")
    np.savez(tmp_path / "zero.npz", names=names, vectors=0 * V)
    with pytest.raises(UserError, match="first for 'red apple'"):
        read_bank(tmp_path / "zero.npz")


def test_vectors_in_the_order_of_the_phrases(tmp_path: Path, phrases: Path):
    np.save(tmp_path / "v.npy", V)  # of all four phrases, of which two are one
    bank = embedded_by(read_bank(phrases), tmp_path / "v.npy")
    assert bank.texts == ["long whiskers", "Soft fur", "a wet nose"]
    assert torch.allclose(bank.directions(), UNIT[[0, 1, 2]])
    assert bank.concepts[1].classes == ("cat", "dog")
    np.save(tmp_path / "three.npy", V[:3])  # of the three that are left
    assert torch.allclose(embedded_by(read_bank(phrases), tmp_path / "three.npy").directions(), UNIT[:3])
    np.save(tmp_path / "two.npy", V[:2])
    with pytest.raises(UserError, match=r"2 vectors without names, .* 4 phrases \(3 different ones\)"):
        embedded_by(read_bank(phrases), tmp_path / "two.npy")


def test_vectors_with_names_in_any_order(tmp_path: Path, phrases: Path):
    np.savez(tmp_path / "v.npz", texts=np.array(["other", "Wet nose", "soft fur", "LONG_whiskers"]), x=V)
    bank = embedded_by(read_bank(phrases), tmp_path / "v.npz")
    assert torch.allclose(bank.directions(), UNIT[[3, 2, 1]])
    np.savez(tmp_path / "w.npz", texts=np.array(["soft fur", "wet noses", "long whiskers", "x"]), x=V)
    with pytest.raises(UserError, match="no vector for 1 of 3 phrases .* 'a wet nose': did you mean 'wet noses'"):
        embedded_by(read_bank(phrases), tmp_path / "w.npz")


def test_class_names_with_vectors(tmp_path: Path):
    classes = ["001.Red_fox", "002.Wolf"]
    np.savez(tmp_path / "c.npz", names=np.array(["wolf", "red fox", "bear", "cat"]), vectors=V)
    bank = class_vectors_bank(classes, tmp_path / "c.npz")
    assert [concept.classes for concept in bank.concepts] == [(name,) for name in classes]
    assert torch.allclose(bank.directions(), UNIT[[1, 0]])
    np.save(tmp_path / "c.npy", V[:2])
    assert torch.allclose(class_vectors_bank(classes, tmp_path / "c.npy").directions(), UNIT[:2])
    with pytest.raises(UserError, match="no vector for class 'lion'"):
        class_vectors_bank(["wolf", "lion"], tmp_path / "c.npz")
    with pytest.raises(UserError, match="2 vectors without names: expected one per class, 3"):
        class_vectors_bank(["a", "b", "c"], tmp_path / "c.npy")


def test_given_vectors_are_filtered_and_saved_ones_are_not(tmp_path: Path):
    (tmp_path / "p.json").write_text(json.dumps({"cat": ["a cat in a hat", "long whiskers"], "dog": ["a wet nose"]}))
    np.save(tmp_path / "v.npy", V[:3])
    bank = embedded_by(read_bank(tmp_path / "p.json"), tmp_path / "v.npy")
    how = dict(hygiene=True, max_words=20, remove_class_names="own")

    def no_text(texts: list[str]) -> torch.Tensor:
        raise AssertionError("nothing is encoded")

    ready = prepare_bank(bank, ["cat", "dog"], no_text, None, **how)
    assert ready.texts == ["long whiskers", "a wet nose"]
    assert torch.allclose(ready.directions(), UNIT[[1, 2]])
    assert len(ready.dropped) == 1
    (tmp_path / "saved").mkdir()
    prepare_bank(bank, ["cat", "dog"], no_text, "e" * 32, **how).save(tmp_path / "saved")
    saved = load_bank(tmp_path / "saved")
    assert prepare_bank(saved, ["cat", "dog"], no_text, None, **how).texts == ready.texts  # no encoder to compare
    with pytest.raises(UserError, match="embedding space of another encoder"):
        prepare_bank(saved, ["cat", "dog"], no_text, "f" * 32, **how)


def test_vectors_must_be_as_wide_as_the_features(tmp_path: Path, phrases: Path):
    np.save(tmp_path / "v.npy", V)
    bank = embedded_by(read_bank(phrases), tmp_path / "v.npy")
    assert width_fits(bank, 3) is bank
    assert width_fits(bank, None) is bank
    with pytest.raises(UserError, match="embeddings of 3 dimensions, the features have 4"):
        width_fits(bank, 4)


def test_names_of_other_vectors_are_not_taken(tmp_path: Path):
    words = np.array(["red", "green", "blue", "grey"])
    np.savez(tmp_path / "two.npz", a=V, b=2 * V, b_names=words)
    assert read_bank(tmp_path / "two.npz", "b").texts == words.tolist()
    with pytest.raises(UserError, match="but no names"):
        read_bank(tmp_path / "two.npz", "a")


def test_names_that_are_not_as_many_or_are_objects_are_not_passed_over(tmp_path: Path, phrases: Path):
    words = np.array(["soft fur", "a wet nose", "long whiskers", "x"])
    np.savez(tmp_path / "short.npz", vectors=V, names=words[:3])
    np.savez(tmp_path / "objects.npz", vectors=V, names=words.astype(object))
    for file, message in (("short.npz", "names has 3 names, .* vectors 4 vectors"), ("objects.npz", "Python objects")):
        with pytest.raises(UserError, match=message):
            read_bank(tmp_path / file)
        with pytest.raises(UserError, match=message):
            embedded_by(read_bank(phrases), tmp_path / file)
