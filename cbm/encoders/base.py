"""``Encoder``: the base class of all encoders."""

import hashlib
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from PIL import Image
from torch import Tensor, nn

from cbm.errors import UserError
from cbm.files.pictures import ENOUGH, upright_rgb

LOGIT_SCALE = 100.0
"""Factor on cosines of CLIP, for encoders that were not trained with one, and features of unknown origin."""
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Encoder:
    """A frozen image tower, and a text tower where the model has one.

    Attributes:
        id: name of the model as the user wrote it, e.g. ``ViT-L-14/openai``.
        fingerprint: hash of the weights, the preprocessing and the activation (if it is QuickGELU): two encoders with
            the same fingerprint give the same features, so it addresses them in the feature store.
        former: its fingerprint before the activation was part of it; None if it computed otherwise then.
        dim: width D of the features.
        logit_scale: factor on cosine similarities that the model was trained with (100 if it has none).
        preprocess: function from an image to a tensor ``[3, H, W]``.
        least: pixels along the shorter side of an image that suffice for the same features within a tolerance
            (``cbm.files.pictures``); None if ``preprocess`` does not scale images to one size.
    """

    has_text = False

    def __init__(
        self,
        id: str,
        model: nn.Module,
        preprocess: Callable[[Image.Image], Tensor],
        *,
        precision: str = "bf16",
        device: str = "cpu",
        logit_scale: float = LOGIT_SCALE,
        forced: bool = False,
    ):
        self.id = id
        self.model = model.eval().requires_grad_(False).to(device)
        self.preprocess = preprocess
        self.device = torch.device(device)
        self.precision = precision
        self.logit_scale = logit_scale
        former, self.fingerprint = _fingerprints(model, preprocess)
        self.former = None if forced else former
        with torch.inference_mode():
            picture = preprocess(Image.new("RGB", (32, 32)))[None]
            self.dim = int(self.encode_images(picture).shape[1])
        self.least = _least(preprocess, max(picture.shape[-2:]))

    def to(self, device: torch.device | str) -> "Encoder":
        """Move the model; returns the encoder."""
        self.model.to(device)
        self.device = torch.device(device)
        return self

    def autocast(self) -> AbstractContextManager:
        """Mixed precision on a GPU; CPUs compute in float32."""
        dtype = AUTOCAST[self.precision]
        if self.device.type == "cuda" and dtype is not None:
            return torch.autocast("cuda", dtype)
        return nullcontext()

    @torch.inference_mode()
    def encode_images(self, pictures: Tensor) -> Tensor:
        """Preprocessed images ``[N, 3, H, W]`` to raw (not normalised) float32 features ``[N, D]`` on the CPU."""
        with self.autocast():
            features = self.image_features(pictures.to(self.device, non_blocking=True))
        return features.float().cpu()

    def image_features(self, pictures: Tensor) -> Tensor:
        """The image tower itself: ``[N, 3, H, W]`` to ``[N, D]``."""
        raise NotImplementedError

    @property
    def one_language(self) -> bool:
        """Whether the tokenizer is of one language."""
        return False

    def pieces(self, texts: list[str]) -> list[list[str]]:
        """The pieces that the tokenizer makes of every text; an empty list if that is not known."""
        return []

    @torch.inference_mode()
    def encode_positions(self, pictures: Tensor) -> Tensor | None:
        """Raw float32 features of every position of the last feature map, ``[N, D, h, w]`` on the CPU.

        None if the tower ends in a pooling without positions (see ``cbm.encoders.positions``).
        """
        with self.autocast():
            features = self.position_features(pictures.to(self.device, non_blocking=True))
        return None if features is None else features.float().cpu()

    def position_features(self, pictures: Tensor) -> Tensor | None:
        """The image tower, position by position: ``[N, 3, H, W]`` to ``[N, D, h, w]``."""
        return None

    def seen(self, picture: Image.Image) -> Image.Image:
        """The part of an image that the encoder sees: cropped and scaled, in its original colours."""
        black, white = (self.preprocess(Image.new("RGB", (32, 32), colour)) for colour in ("black", "white"))
        low, high = (plain.mean(dim=(1, 2), keepdim=True) for plain in (black, white))
        pixels = (self.preprocess(upright_rgb(picture)) - low) / (high - low)
        return Image.fromarray((pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())

    def encode_text(self, texts: list[str], *, batch_size: int = 256, progress: bool = False) -> Tensor:
        """Texts to raw float32 features ``[M, D]``.

        Args:
            texts: M texts.
            batch_size: texts per forward pass.
            progress: whether a progress bar is shown.

        Raises:
            UserError: this encoder has no text tower.
        """
        raise UserError(
            f"encoder '{self.id}' reads images only, but text was asked of it: "
            "use a CLIP model (e.g. encoder=vit_b32), concepts learned from pictures (concepts=cav), or a method that "
            "needs no concepts (method=linear_probe)"
        )


def _least(preprocess: Callable[[Image.Image], Tensor], side: int) -> int | None:
    """Pixels along the shorter side that suffice, if a picture and the same at half its size are the same to it."""
    large = Image.linear_gradient("L").convert("RGB").resize((4 * side, 4 * side), Image.Resampling.BILINEAR)
    whole, half = preprocess(large), preprocess(large.reduce(2))
    if whole.shape != half.shape or (whole - half).abs().max() > 0.05 * (whole.max() - whole.min()):
        return None
    return ENOUGH * side


def uses_quick_gelu(model: nn.Module) -> bool:
    """Whether any tower of a model computes with QuickGELU."""
    return any(type(module).__name__ == "QuickGELU" for module in model.modules())


def _fingerprints(model: nn.Module, preprocess: Callable) -> tuple[str, str]:
    """Hash of weights, buffers and the printed preprocessing, without and with the activation if it is QuickGELU."""
    printed = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(preprocess))  # where a function lies is another in every process
    digest = hashlib.sha256(printed.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    former = digest.hexdigest()[:32]
    if uses_quick_gelu(model):
        digest.update(b"QuickGELU")
    return former, digest.hexdigest()[:32]
