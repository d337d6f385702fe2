import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cbm.data.birds import ATTRIBUTES, CONCEPTS, SPECIES_NAMES, concepts_of, random_birds

REPO = Path(__file__).parents[2]
FOLDER = REPO / "cbm" / "encoders" / "tiny_clip"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("train_tiny_clip", REPO / "scripts" / "train_tiny_clip.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def clip():
    import open_clip

    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{FOLDER}")
    return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{FOLDER}")


@pytest.fixture(scope="module")
def scores(clip):
    """Concept scores [300, K] of fresh random birds, as any user of open_clip computes them, and their truth."""
    model, preprocess, tokenize = clip
    pictures, attributes = random_birds(300, seed=4242)
    with torch.no_grad():
        x = model.encode_image(torch.stack([preprocess(Image.fromarray(p)) for p in pictures]), normalize=True)
        t = model.encode_text(tokenize(list(CONCEPTS)), normalize=True)
    return (x @ t.T).numpy(), attributes


def test_files():
    assert sum(f.stat().st_size for f in FOLDER.iterdir()) <= 8_000_000
    card = json.loads((FOLDER / "card.json").read_text())
    assert card["measured"]["mean_auroc"] > 0.95
    assert f"{card['measured']['mean_auroc']:.4f}" in (FOLDER / "README.md").read_text()


def test_loads_in_a_fresh_process_from_any_folder(tmp_path):
    code = (
        "import sys, open_clip, torch; where = 'local-dir:' + sys.argv[1];"
        "model, preprocess = open_clip.create_model_from_pretrained(where);"
        "t = model.encode_text(open_clip.get_tokenizer(where)(['yellow belly']));"
        "x = model.encode_image(torch.zeros(2, 3, 64, 64)); print(tuple(t.shape), tuple(x.shape), t.dtype)"
    )
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(FOLDER)],
        cwd=tmp_path,
        env=offline,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split("\n")[0] == "(1, 128) (2, 128) torch.float32", done.stderr


def test_preprocess_keeps_the_pixels(clip):
    pixels = random_birds(1, seed=1)[0][0]
    expected = torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(clip[1](Image.fromarray(pixels)), expected, atol=1e-5, rtol=0)


def test_concepts_are_found_from_their_phrases(script, scores):
    values, attributes = scores
    truth = concepts_of(attributes)
    areas = np.array([script.auroc(values[:, k], truth[:, k]) for k in range(len(CONCEPTS))])
    assert areas.mean() > 0.99
    assert areas.min() > 0.95, CONCEPTS[areas.argmin()]


def test_zero_shot_within_each_group(scores):
    values, attributes = scores
    first, accuracies = 0, []
    for g, (group, names) in enumerate(ATTRIBUTES.items()):
        right = values[:, first : first + len(names)].argmax(1) == attributes[:, g]
        accuracies.append(right.mean())
        assert right.mean() > 0.9, group
        first += len(names)
    assert np.mean(accuracies) > 0.97


def test_words(clip):
    tokenize = clip[2]
    tokens = tokenize(["Yellow belly", "yellow belly", "a zyzzyva", "", "word " * 100])
    assert tokens.shape == (5, 32)
    assert torch.equal(tokens[0], tokens[1])
    assert (tokens.max(1).values == tokens.max()).all()  # every text ends in the token that CLIP pools at
    assert 1 not in tokens  # no unknown tokens: other words are spelled
    assert tokenize(list(CONCEPTS)).gt(0).sum(1).max() <= 8


def test_captions_never_name_a_species(script):
    rng = random.Random(0)
    truth = concepts_of(random_birds(200, seed=9, size=8)[1])
    texts = [
        script.caption(script.pick_concepts(t, rng, training), rng, training)
        for t in truth
        for training in (True, False)
    ]
    texts += [script.caption([c], rng) for c in range(len(CONCEPTS)) for _ in range(10)]
    assert len(set(texts)) > 600
    names = [name.lower() for name in SPECIES_NAMES]
    assert not [text for text in texts for name in names if name in text.lower()]
    assert not script.caption_words() & set(names)
    assert not set(script.FILLERS.split()) & set(names)


def test_held_out_pairs_stay_out_of_training(script):
    rng = random.Random(1)
    for t in concepts_of(random_birds(100, seed=10, size=8)[1]):
        for training in (True, False):
            chosen = script.pick_concepts(t, rng, training)
            assert t[chosen].all()
            pairs = [script.held_out_pair(a, b) for i, a in enumerate(chosen) for b in chosen[:i]]
            assert any(pairs) != training


def test_auroc(script):
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    values, truth = rng.normal(size=50), rng.integers(0, 2, 50)
    assert script.auroc(values, truth) == pytest.approx(roc_auc_score(truth, values))
