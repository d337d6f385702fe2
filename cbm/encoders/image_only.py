"""Image-only backbones from timm and torchvision: ``timm:resnet18``, ``torchvision:resnet50``."""

import logging
from typing import Any

from torch import Tensor, nn

from cbm.encoders.base import Encoder
from cbm.encoders.positions import timm_position_features
from cbm.errors import UserError, did_you_mean
from cbm.files.loading import tensors_only

log = logging.getLogger(__name__)


class ImageEncoder(Encoder):
    """A backbone without its classifier."""

    def image_features(self, pictures: Tensor) -> Tensor:
        """Pooled features before the classifier: ``[N, 3, H, W]`` to ``[N, D]``."""
        return self.model(pictures).flatten(1)

    def position_features(self, pictures: Tensor) -> Tensor | None:
        """Position by position, of a timm model: ``[N, 3, H, W]`` to ``[N, D, h, w]``."""
        return timm_position_features(self.model, nn.Identity(), pictures)


def load(library: str, name: str, pretrained: str | None) -> tuple[nn.Module, Any, bool]:
    """Backbone and preprocessing, and whether another activation than the name's is used: that of the weights.

    Args:
        library: ``timm`` or ``torchvision``.
        name: the library's model name (for timm with its tag: ``resnet50.a1_in1k``).
        pretrained: ``default`` (or None) for the library's weights, ``random`` for none.
    """
    if pretrained not in (None, "default", "random"):
        raise UserError(f"encoder.pretrained={pretrained}: a {library} model takes 'default' or 'random'")
    return (_timm if library == "timm" else _torchvision)(name, pretrained != "random")


def quick_gelu_twin(name: str) -> str | None:
    """The model to use instead where a timm model's weights were trained with QuickGELU and the model uses GELU.

    timm says so in the notes of its weights only. None if the model is right as it is.

    Raises:
        UserError: there is no such model.

    >>> quick_gelu_twin("vit_base_patch32_clip_224.openai")
    'vit_base_patch32_clip_quickgelu_224.openai'
    """
    import timm

    settings = timm.get_pretrained_cfg(name)
    if settings is None or "quickgelu" in name or not any("QuickGELU" in note for note in settings.notes or ()):
        return None
    architecture = name.split(".")[0]
    twin = architecture.replace("_clip_", "_clip_quickgelu_")
    if twin == architecture or not timm.is_model(twin):
        near = did_you_mean(twin, [other for other in timm.list_models() if "quickgelu" in other])
        raise UserError(f"encoder 'timm:{name}': its weights were trained with QuickGELU, the model uses GELU: {near}")
    return f"{twin}.{settings.tag}" if settings.tag else twin


def _timm(name: str, weights: bool) -> tuple[nn.Module, Any, bool]:
    import timm

    if not timm.is_model(name):
        raise UserError(f"unknown timm model '{name}': {did_you_mean(name, timm.list_models())}")
    twin = quick_gelu_twin(name) if weights else None
    if twin is not None:
        log.info("encoder 'timm:%s': its weights were trained with QuickGELU: '%s' is used", name, twin)
    with tensors_only():
        model = timm.create_model(twin or name, pretrained=weights, num_classes=0)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
    return model, transform, twin is not None


def _torchvision(name: str, weights: bool) -> tuple[nn.Module, Any, bool]:
    from torchvision import models

    if name not in models.list_models(module=models):
        raise UserError(f"unknown torchvision model '{name}': {did_you_mean(name, models.list_models(module=models))}")
    default = models.get_model_weights(name).DEFAULT
    with tensors_only():  # torchvision would unpickle what it downloads
        model = models.get_model(name, weights=default if weights else None)
    for head in ("fc", "classifier", "heads", "head"):
        if hasattr(model, head):
            setattr(model, head, nn.Identity())
            break
    return model, default.transforms(), False
