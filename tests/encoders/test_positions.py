"""A position's feature is what the tower would say if its pool saw that position only."""

import open_clip
import pytest
import timm
import torch
from conftest import PROJECT, PixelEncoder
from PIL import Image

from cbm.encoders import create_encoder
from cbm.encoders.positions import position_features


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build(vision: dict) -> torch.nn.Module:
    text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    torch.manual_seed(0)
    return open_clip.CLIP(16, {"image_size": 32, **vision}, text).visual.eval().requires_grad_(False)


def test_class_token_attends_to_one_patch(pictures):
    """The reference: open_clip's own last block, under a mask that leaves the class token one patch."""
    tower = build({"layers": 3, "width": 32, "head_width": 16, "patch_size": 8})
    found = position_features(tower, pictures)
    assert found.shape == (2, 16, 4, 4)
    blocks = tower.transformer.resblocks
    for patch in (0, 6, 15):
        mask = torch.zeros(17, 17)
        mask[0] = -torch.inf
        mask[0, 1 + patch] = 0.0
        x = tower._embeds(pictures)
        for block in blocks[:-1]:
            x = block(x)
        pooled, _ = tower._pool(blocks[-1](x, attn_mask=mask))
        assert torch.allclose(found.flatten(2)[:, :, patch], pooled @ tower.proj, atol=1e-5)


def test_attention_pool_is_a_mixture_of_its_positions(pictures):
    """With all attention on one position the pool gives that position's feature: its keys are made to."""
    tower = build({"layers": [1, 1, 1, 1], "width": 16, "head_width": 64})
    found = position_features(tower, pictures)
    assert found.shape[:2] == (2, 16)
    assert found.shape[2:] == (1, 1)
    pool = tower.attnpool
    pool.k_proj.weight.zero_()
    pool.k_proj.bias.zero_()  # even attention: the mean over the mean token and the positions
    x = tower.layer4(tower.layer3(tower.layer2(tower.layer1(tower.stem(pictures)))))
    mean_token = pool.c_proj(pool.v_proj(x.mean(dim=(2, 3)) + pool.positional_embedding[0]))
    assert torch.allclose((mean_token + found[:, :, 0, 0]) / 2, tower(pictures), atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_positions_of_an_averaging_backbone_average_to_its_feature(name: str):
    torch.manual_seed(0)
    size = 224 if "swin" in name else 64
    encoder = create_encoder(f"timm:{name}", "random", device="cpu")
    pictures = torch.randn(1, 3, size, size)
    found = encoder.encode_positions(pictures)
    mean = found.mean(dim=(2, 3))
    if name == "convnext_atto":  # a norm follows the average: compare what it makes of it
        assert found.shape[2:] == (2, 2)
        assert torch.isfinite(found).all()
    else:
        assert torch.allclose(mean, encoder.encode_images(pictures), atol=1e-4)


def test_patches_behind_an_attention_pool(pictures):
    """SigLIP's kind of pool: its own latent attends to a picture of one patch."""
    torch.manual_seed(0)
    trunk = timm.create_model(
        "vit_base_patch16_siglip_224", pretrained=False, num_classes=0, img_size=32, embed_dim=32, depth=1, num_heads=2,
        patch_size=8,
    ).eval()  # fmt: skip
    from cbm.encoders.positions import timm_position_features

    with torch.no_grad():
        found = timm_position_features(trunk, torch.nn.Identity(), pictures)
        tokens = trunk.forward_features(pictures)
        assert torch.allclose(found.flatten(2)[:, :, 5], trunk.forward_head(tokens[:, 5:6]), atol=1e-5)
    assert found.shape == (2, 32, 4, 4)


def test_towers_without_positions_say_so(pictures):
    assert PixelEncoder().encode_positions(pictures[:, :, :8, :8]) is None
    trunk = timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0, img_size=32, depth=1)
    from cbm.encoders.positions import timm_position_features

    assert timm_position_features(trunk, torch.nn.Identity(), pictures) is None  # pools its class token


def test_seen_is_the_picture_in_its_colours():
    """Cropped to the middle; colours as they were, whatever the encoder's normalisation."""
    encoder = create_encoder(f"local-dir:{PROJECT / 'cbm/encoders/tiny_clip'}", device="cpu")
    wide = Image.new("RGB", (128, 64), (250, 200, 10))
    wide.paste((10, 20, 30), (0, 0, 32, 64))
    seen = encoder.seen(wide)
    assert seen.size == (64, 64)
    assert all(abs(a - b) <= 1 for a, b in zip(seen.getpixel((40, 30)), (250, 200, 10)))
