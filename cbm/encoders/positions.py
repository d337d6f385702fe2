"""What an image tower sees at every position of its last feature map, in the space of its features.

A tower ends by pooling: an average, or attention over all positions. Here the pool sees one position only, and what
follows it stays as it is; where there is attention, all of it lies on that position. So every position has a feature
that can be compared with a concept as the image's own can. Where there is attention, this is the map of MaskCLIP:
Zhou, Loy and Dai, "Extract Free Dense Labels from CLIP", ECCV 2022.
"""

from torch import Tensor, nn


def position_features(tower: nn.Module | None, pictures: Tensor) -> Tensor | None:
    """The image tower of an open_clip model, position by position.

    Args:
        tower: its ``visual``.
        pictures: ``[N, 3, H, W]``.

    Returns:
        ``[N, D, h, w]``; None for a tower whose pool is of another kind.
    """
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer

    if isinstance(tower, ModifiedResNet):
        return _of_attention_pool(tower, pictures)
    if isinstance(tower, TimmModel):
        return timm_position_features(tower.trunk, tower.head, pictures)
    if isinstance(tower, VisionTransformer) and tower.attn_pool is None and tower.pool_type == "tok":
        block = tower.transformer.resblocks[-1]
        if type(block) is ResidualAttentionBlock:
            return _of_class_token(tower, block, pictures)
    return None


def timm_position_features(trunk: nn.Module, head: nn.Module, pictures: Tensor) -> Tensor | None:
    """The same of a timm model and the projection that follows it: convolutions, and transformers that pool patches."""
    if not hasattr(trunk, "forward_head") or getattr(trunk, "num_prefix_tokens", False):
        return None
    found = trunk.forward_features(pictures)  # type: ignore[operator]
    if found.ndim == 4:
        last = getattr(trunk, "output_fmt", "NCHW") == "NHWC"
        found = found if last else found.movedim(1, 3)
        count, h, w, width = found.shape
        alone = found.reshape(-1, 1, 1, width) if last else found.reshape(-1, width, 1, 1)
    else:
        count, patches, width = found.shape
        h = w = round(patches**0.5)
        if h * w != patches or getattr(trunk, "global_pool", None) not in ("avg", "map"):
            return None
        alone = found.reshape(-1, 1, width)
    return _as_map(head(trunk.forward_head(alone)), count, h, w)  # type: ignore[operator]


def _of_attention_pool(tower, pictures: Tensor) -> Tensor:
    """ModifiedResNet: the value of a position, projected."""
    found = tower.layer4(tower.layer3(tower.layer2(tower.layer1(tower.stem(pictures)))))
    pool, (count, _, h, w) = tower.attnpool, found.shape
    placed = found.flatten(2).mT + pool.positional_embedding[1:].to(found.dtype)  # [N, hw, C]
    return _as_map(pool.c_proj(pool.v_proj(placed)), count, h, w)


def _of_class_token(tower, block, pictures: Tensor) -> Tensor:
    """VisionTransformer: the class token after a last block in which it attends to one patch only."""
    x = tower._embeds(pictures)
    for earlier in tower.transformer.resblocks[:-1]:
        x = earlier(x)
    attention, width = block.attn, x.shape[2]
    weight, bias = attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :]
    seen = attention.out_proj(nn.functional.linear(block.ln_1(x[:, 1:]), weight, bias))  # [N, hw, width]
    token = x[:, :1] + block.ls_1(seen)
    token = tower.ln_post(token + block.ls_2(block.mlp(block.ln_2(token))))
    features = token if tower.proj is None else token @ tower.proj
    return _as_map(features, len(x), *tower.grid_size)


def _as_map(features: Tensor, count: int, h: int, w: int) -> Tensor:
    """``N h w`` features in reading order to ``[N, D, h, w]``."""
    return features.reshape(count, h, w, -1).permute(0, 3, 1, 2)
