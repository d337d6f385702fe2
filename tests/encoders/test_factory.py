import json
from pathlib import Path

import open_clip
import pytest
import safetensors.torch
import torch
from PIL import Image
from torchvision import transforms

from cbm import config
from cbm.encoders import create_encoder
from cbm.encoders.base import _fingerprints
from cbm.errors import UserError

SMALL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8, "head_width": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}
TEXTS = ["a cat", "a small grey bird with a very long tail standing in the tall grass", "dog", "red " * 200]


@pytest.fixture(scope="module", params=["CLIP", "CustomTextCLIP"])
def local_dir(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random CLIP in open_clip's own format, with either of its text towers."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    settings = {k: dict(v) if isinstance(v, dict) else v for k, v in SMALL.items()}
    settings["custom_text"] = request.param == "CustomTextCLIP"
    arguments = {k: v for k, v in settings.items() if k != "custom_text"}
    kind = open_clip.CustomTextCLIP if settings["custom_text"] else open_clip.CLIP
    model = kind(**arguments)
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    content = {"model_cfg": settings, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    safetensors.torch.save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def test_cutting_the_padding_is_exact(local_dir: Path):
    encoder = create_encoder(f"local-dir:{local_dir}", device="cpu")
    with torch.inference_mode():
        whole = encoder.model.encode_text(encoder.tokenizer(TEXTS))
    features = encoder.encode_text(TEXTS, batch_size=2)
    torch.testing.assert_close(features, whole, rtol=1e-4, atol=1e-5)
    assert encoder._trim
    seen = []
    original = encoder._encode_tokens
    encoder._encode_tokens = lambda tokens: (seen.append(tokens.shape[1]), original(tokens))[1]
    encoder.encode_text(["a cat", "a dog"])
    assert max(seen) < 10


def test_the_order_of_texts_is_kept(local_dir: Path):
    encoder = create_encoder(f"local-dir:{local_dir}", device="cpu")
    alone = torch.cat([encoder.encode_text([text]) for text in TEXTS])
    torch.testing.assert_close(encoder.encode_text(TEXTS, batch_size=3), alone, rtol=1e-4, atol=1e-5)
    assert encoder.encode_text([]).shape == (0, 32)


def test_texts_that_are_too_long_are_reported(local_dir: Path, caplog: pytest.LogCaptureFixture):
    create_encoder(f"local-dir:{local_dir}", device="cpu").encode_text(TEXTS)
    assert "1 text(s) do not fit the encoder's context of 77 tokens" in caplog.text


def test_images_and_fingerprint(local_dir: Path):
    encoder = create_encoder(f"local-dir:{local_dir}", device="cpu")
    picture = encoder.preprocess(Image.new("RGB", (50, 40), "red"))
    assert picture.shape == (3, 32, 32)
    assert encoder.encode_images(picture[None]).shape == (1, encoder.dim) == (1, 32)
    again = create_encoder(f"local-dir:{local_dir}", device="cpu")
    assert again.fingerprint == encoder.fingerprint
    weights = safetensors.torch.load_file(local_dir / "open_clip_model.safetensors")
    weights["logit_scale"] += 1e-3
    safetensors.torch.save_file(weights, local_dir / "open_clip_model.safetensors")
    assert create_encoder(f"local-dir:{local_dir}", device="cpu").fingerprint != encoder.fingerprint


@pytest.mark.parametrize(
    "name", ["timm:test_resnet.r160_in1k", "torchvision:shufflenet_v2_x0_5", "timm:test_vit.r160_in1k"]
)
def test_image_only_backbones(name: str):
    encoder = create_encoder(name, "random", device="cpu")
    picture = encoder.preprocess(Image.new("RGB", (64, 64), "red"))[None]
    assert encoder.encode_images(picture).shape == (1, encoder.dim)
    assert encoder.fingerprint == create_encoder(name, "random", device="cpu").fingerprint
    assert not encoder.has_text
    with pytest.raises(UserError, match="reads images only, but text was asked of it"):
        encoder.encode_text(["a"])


@pytest.mark.parametrize("name", [n for n in config.choices("encoder") if n not in ("auto", "tiny_clip", "resnet18")])
def test_shipped_encoder_configs_name_weights_that_exist(name: str):
    from omegaconf import OmegaConf

    settings = OmegaConf.load(config.CONFIGS / "encoder" / f"{name}.yaml")
    assert settings.pretrained in open_clip.list_pretrained_tags_by_model(settings.model)


def test_the_colon_of_a_windows_path_is_no_second_prefix():
    with pytest.raises(UserError, match=r"no open_clip_config.json in 'C:\\clip'"):
        create_encoder("local-dir:C:\\clip", device="cpu")


def test_where_a_function_lies_in_memory_is_not_in_the_fingerprint():
    def make():
        def to_rgb(picture):
            return picture

        return transforms.Compose([to_rgb, transforms.ToTensor()])

    model, first, second = torch.nn.Linear(2, 1), make(), make()
    assert repr(first) != repr(second)
    assert _fingerprints(model, first) == _fingerprints(model, second)
    assert _fingerprints(model, first) != _fingerprints(model, transforms.ToTensor())
