"""Image-only backbones from timm and torchvision: ``timm:resnet18``, ``torchvision:resnet50``."""

from typing import Any

from torch import Tensor, nn

from cbm.encoders.base import Encoder
from cbm.encoders.foreign_code import tensors_only
from cbm.encoders.positions import timm_position_features
from cbm.errors import UserError, did_you_mean


class ImageEncoder(Encoder):
    """A backbone without its classifier."""

    def image_features(self, pictures: Tensor) -> Tensor:
        """Pooled features before the classifier: ``[N, 3, H, W]`` to ``[N, D]``."""
        return self.model(pictures).flatten(1)

    def position_features(self, pictures: Tensor) -> Tensor | None:
        """Position by position, of a timm model: ``[N, 3, H, W]`` to ``[N, D, h, w]``."""
        return timm_position_features(self.model, nn.Identity(), pictures)


def load(library: str, name: str, pretrained: str | None) -> tuple[nn.Module, Any]:
    """Backbone and preprocessing.

    Args:
        library: ``timm`` or ``torchvision``.
        name: the library's model name (for timm with its tag: ``resnet50.a1_in1k``).
        pretrained: ``default`` (or None) for the library's weights, ``random`` for none.
    """
    if pretrained not in (None, "default", "random"):
        raise UserError(f"encoder.pretrained={pretrained}: a {library} model takes 'default' or 'random'")
    return (_timm if library == "timm" else _torchvision)(name, pretrained != "random")


def _timm(name: str, weights: bool) -> tuple[nn.Module, Any]:
    import timm

    if not timm.is_model(name):
        raise UserError(f"unknown timm model '{name}': {did_you_mean(name, timm.list_models())}")
    with tensors_only():
        model = timm.create_model(name, pretrained=weights, num_classes=0)
    return model, timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)


def _torchvision(name: str, weights: bool) -> tuple[nn.Module, Any]:
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
    return model, default.transforms()
