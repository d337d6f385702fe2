"""Weights are run with the activation that they were trained with, in both towers."""

import copy
import json
import logging
import warnings
from pathlib import Path

import open_clip
import open_clip.factory
import pytest
import safetensors.torch
import timm
import torch

from cbm.encoders import create_encoder, image_only
from cbm.encoders import open_clip as ours
from cbm.encoders.base import Encoder
from cbm.errors import UserError
from cbm.files.console import pass_on

SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
QUICK = {"quick_gelu": True, "url": "", "mean": [0.5] * 3, "std": [0.5] * 3}
PAIRS = [(m, t) for m in open_clip.list_models() for t in open_clip.list_pretrained_tags_by_model(m)]


@pytest.mark.parametrize("custom", [False, True], ids=["CLIP", "CustomTextCLIP"])
@pytest.mark.parametrize("own", [False, True], ids=["plain name", "quickgelu name"])
@pytest.mark.parametrize("trained", [False, True], ids=["GELU", "QuickGELU"])
def test_both_towers_have_the_activation_of_the_tag(
    monkeypatch, tmp_path: Path, custom: bool, own: bool, trained: bool
):
    name = "Small-quickgelu" if own else "Small"
    config = {**copy.deepcopy(SMALL), "custom_text": custom, **({"quick_gelu": True} if own else {})}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
    monkeypatch.setattr(open_clip, "list_models", lambda: ["Small", "Small-quickgelu"])
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda model: ["tag"])
    for place in (open_clip, open_clip.factory):
        monkeypatch.setattr(place, "get_pretrained_cfg", lambda model, tag: {**QUICK, "quick_gelu": trained})
    torch.save(open_clip.create_model(name, pretrained=None).state_dict(), tmp_path / "w.pt")
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *_, **__: str(tmp_path / "w.pt"))
    if own and not trained:
        with pytest.raises(UserError, match="weights 'tag' were trained with GELU: use encoder.model=Small$"):
            create_encoder(name, "tag", device="cpu")
        return
    encoder = create_encoder(name, "tag", device="cpu")
    text = encoder.model.text if custom else encoder.model
    for tower in (encoder.model.visual, text):
        kinds = {type(block.mlp.gelu).__name__ for block in tower.transformer.resblocks}
        assert kinds == ({"QuickGELU"} if trained else {"GELU"})


def test_every_tag_of_open_clip(monkeypatch):
    """What the library would only warn of: for each model and tag the activation is forced, or right by itself."""
    seen = {}

    def build(model, *, pretrained, force_quick_gelu, **_):
        seen[model, pretrained] = force_quick_gelu
        raise UserError("stop")

    monkeypatch.setattr(open_clip, "create_model_from_pretrained", build)
    for model, tag in PAIRS:
        with pytest.raises(UserError, match="stop"):
            ours.load(model, tag, "cpu")
        quick = bool(open_clip.get_pretrained_cfg(model, tag).get("quick_gelu"))
        if quick:
            assert seen[model, tag] or open_clip.get_model_config(model).get("quick_gelu"), (model, tag)
        else:
            assert not seen[model, tag]
    forced = {pair for pair, value in seen.items() if value}
    assert {
        ("ViT-B-32", "openai"),
        ("RN50", "openai"),
        ("ViT-L-14", "dfn2b"),
        ("ViT-H-14", "metaclip_fullcc"),
    } <= forced


def weights_file(folder: Path) -> Path:
    torch.manual_seed(0)
    torch.save(open_clip.CLIP(**copy.deepcopy(SMALL)).state_dict(), folder / "w.pt")
    return folder / "w.pt"


def test_for_a_file_and_a_folder_it_is_said(monkeypatch, tmp_path: Path, caplog):
    caplog.set_level(logging.INFO)
    file = weights_file(tmp_path)
    models = {"Small": SMALL, "Small-quickgelu": {**SMALL, "quick_gelu": True}}
    monkeypatch.setattr(open_clip, "list_models", lambda: list(models))
    encoders = []
    for name, config in models.items():
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, copy.deepcopy(config))
        encoders.append(create_encoder(name, str(file), device="cpu"))
    assert "'Small': its transformers compute with GELU" in caplog.text
    assert "use encoder.model=Small-quickgelu" in caplog.text
    assert "'Small-quickgelu': its transformers compute with QuickGELU" in caplog.text
    plain, quick = encoders
    assert plain.fingerprint == plain.former == quick.former  # what was encoded with GELU is still found
    assert quick.fingerprint != plain.fingerprint
    picture = torch.rand(1, 3, 32, 32)
    assert not torch.allclose(plain.encode_images(picture), quick.encode_images(picture))
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    content = {"model_cfg": {**SMALL, "quick_gelu": True}, "preprocess_cfg": preprocess}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    safetensors.torch.save_file(torch.load(file), tmp_path / "open_clip_model.safetensors")
    create_encoder(f"local-dir:{tmp_path}", device="cpu")
    assert "quick_gelu in open_clip_config.json says so; set it to false" in caplog.text
    caplog.clear()
    create_encoder("local-dir:cbm/encoders/tiny_clip", device="cpu")
    assert "GELU" not in caplog.text


def test_forced_encoders_have_no_former_self():
    """Features that the same name gave with the wrong activation are not taken for its own."""
    assert Encoder.__init__.__kwdefaults__["forced"] is False
    assert _fake(forced=True).former is None
    assert _fake(forced=False).former is not None


def _fake(forced: bool) -> Encoder:
    class Fake(Encoder):
        def image_features(self, pictures):
            return self.model(pictures.flatten(1)[:, :4])

    return Fake("fake", torch.nn.Linear(4, 2), lambda image: torch.zeros(3, 2, 2), forced=forced)


def test_timm_models_of_such_weights(monkeypatch):
    noted = [
        name
        for name in timm.list_pretrained()
        if any("QuickGELU" in n for n in timm.get_pretrained_cfg(name).notes or ())
    ]
    assert len(noted) > 10
    for name in noted:
        twin = image_only.quick_gelu_twin(name)
        assert ("quickgelu" in name) == (twin is None)
        assert twin is None or (twin.split(".")[1] == name.split(".")[1] and timm.is_model(twin.split(".")[0]))
    assert image_only.quick_gelu_twin("resnet18") is None
    made = []
    monkeypatch.setattr(timm, "create_model", lambda name, **_: made.append(name) or torch.nn.Linear(1, 1))
    monkeypatch.setattr(timm.data, "resolve_model_data_config", lambda model: {})
    assert image_only.load("timm", "vit_base_patch32_clip_224.openai", None)[2] is True
    assert made == ["vit_base_patch32_clip_quickgelu_224.openai"]


def test_other_warnings_of_a_library_are_passed_on(caplog):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for text, kind in (
            ("mean is missing", UserWarning),
            ("old name", DeprecationWarning),
            ("QuickGELU mismatch", UserWarning),
        ):
            warnings.warn(text, kind, stacklevel=1)
    logging.getLogger("cbm").propagate = True
    pass_on(said, "encoder 'x'")
    # the handler of the fixture may hang on more than one logger
    assert {record.getMessage() for record in caplog.records} == {"encoder 'x': mean is missing"}
