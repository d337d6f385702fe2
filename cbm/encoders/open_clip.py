"""Any open_clip model: name + pretrained tag, ``hf-hub:ORG/NAME`` or ``local-dir:PATH``."""

import contextlib
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor, nn

from cbm.encoders.base import Encoder, uses_quick_gelu
from cbm.encoders.foreign_code import check_folder, check_preprocessing, check_settings, no_foreign_code
from cbm.encoders.positions import position_features
from cbm.errors import UserError
from cbm.files.console import pass_on

log = logging.getLogger(__name__)

BUNDLED = Path(__file__).parent / "tiny_clip"


class ClipEncoder(Encoder):
    """An open_clip model with its tokenizer."""

    has_text = True

    def __init__(self, id: str, model: Any, preprocess: Any, tokenizer: Any, **kwargs: Any):
        self.tokenizer = tokenizer
        self._clip = model
        self._trim: bool | None = None  # decided on the first batch of text
        scale = getattr(model, "logit_scale", None)
        super().__init__(
            id, model, preprocess, logit_scale=float(scale.detach().exp()) if scale is not None else 100.0, **kwargs
        )

    def image_features(self, pictures: Tensor) -> Tensor:
        """The image tower with its projection: ``[N, 3, H, W]`` to ``[N, D]``."""
        return self._clip.encode_image(pictures)

    def position_features(self, pictures: Tensor) -> Tensor | None:
        """The image tower with its projection, position by position: ``[N, 3, H, W]`` to ``[N, D, h, w]``."""
        return position_features(getattr(self._clip, "visual", None), pictures)

    @property
    def one_language(self) -> bool:
        """Whether the tokenizer is of one language."""
        return one_language(self.tokenizer)

    def pieces(self, texts: list[str]) -> list[list[str]]:
        """The pieces that the tokenizer makes of every text; "\ufffd" is in those that are no text."""
        return pieces(self.tokenizer, texts)

    @torch.inference_mode()
    def encode_text(self, texts: list[str], *, batch_size: int = 256, progress: bool = False) -> Tensor:
        """Texts to raw float32 features ``[M, D]``.

        Texts are sorted by length and every batch is cut after its longest text: padding costs nothing. Whether a
        model gives the same features without its padding is tried on the first batch (models with a causal mask or an
        attention mask do); if not, nothing is cut. A text longer than the context is cut at the context, keeping the
        end token, and reported.
        """
        if not texts:
            return torch.zeros(0, self.dim)
        tokens = self.tokenizer(texts)  # [M, L]
        lengths = self._lengths(tokens)
        if too_long := [text for text, n in zip(texts, lengths.tolist()) if n >= tokens.shape[1]]:
            log.warning(
                "%d text(s) do not fit the encoder's context of %d tokens and are cut, e.g. '%s'",
                len(too_long),
                tokens.shape[1],
                too_long[0][:60],
            )
        order = lengths.argsort(stable=True)
        if self._trim is None and int(lengths.min()) < tokens.shape[1]:
            shortest = order[lengths[order] < tokens.shape[1]][:8]
            self._trim = self._padding_is_free(tokens[shortest], int(lengths[shortest].max()))
        features = torch.empty(len(texts), self.dim)
        batches = order.split(batch_size)
        shown = track(batches, "encoding text", transient=True) if progress and len(batches) > 4 else batches
        for rows in shown:
            width = int(lengths[rows].max()) if self._trim else tokens.shape[1]
            features[rows] = self._encode_tokens(tokens[rows, :width])
        return features

    def _encode_tokens(self, tokens: Tensor) -> Tensor:
        with self.autocast(), self._context(tokens.shape[1]):
            return self._clip.encode_text(tokens.to(self.device)).float().cpu()

    @staticmethod
    def _lengths(tokens: Tensor) -> Tensor:
        """Tokens before the padding begins, per row (the padding is what every row's tail repeats)."""
        changes = tokens != tokens[:, -1:]
        last = torch.where(changes, torch.arange(tokens.shape[1]), -1).amax(dim=1)
        return (last + 2).clamp(max=tokens.shape[1])  # one pad stays: some poolings look for it

    def _padding_is_free(self, tokens: Tensor, width: int) -> bool:
        try:
            cut = self._encode_tokens(tokens[:, :width])
        except (RuntimeError, ValueError, IndexError):
            return False
        return torch.allclose(cut, self._encode_tokens(tokens), rtol=1e-4, atol=1e-5)

    @contextlib.contextmanager
    def _context(self, width: int):
        """Let open_clip's text towers, which add their whole position table and mask, read ``width`` tokens."""
        tower = getattr(self._clip, "text", self._clip)
        table, mask = getattr(tower, "positional_embedding", None), getattr(tower, "attn_mask", None)
        if not isinstance(table, nn.Parameter) or not isinstance(mask, Tensor) or width == table.shape[0]:
            yield
            return
        tower.positional_embedding = nn.Parameter(table[:width], requires_grad=False)
        tower.attn_mask = mask[:width, :width]
        try:
            yield
        finally:
            tower.positional_embedding, tower.attn_mask = table, mask


def pieces(tokenizer: Any, texts: list[str]) -> list[list[str]]:
    """The pieces that a tokenizer makes of every text; an empty list for a tokenizer that is not known.

    "\ufffd" is in pieces that are no text: parts of a letter, or tokens for anything unknown.
    """
    if hasattr(tokenizer, "byte_decoder"):  # open_clip's own
        unknown, own = None, tokenizer
        encoded = [tokenizer.encode(text) for text in texts]
        letters = {index: bytes(own.byte_decoder[c] for c in _bare(piece)) for index, piece in own.decoder.items()}
        return [[letters[index].decode(errors="replace") for index in row] for row in encoded]
    if (inner := getattr(tokenizer, "tokenizer", None)) is None or not callable(inner):
        return []
    clean = getattr(tokenizer, "clean_fn", None) or str
    encoded = [inner(clean(text), add_special_tokens=False)["input_ids"] for text in texts]
    unknown = getattr(inner, "unk_token_id", None)
    known = {
        index: "\ufffd" if index == unknown else inner.decode([index]) for index in {i for row in encoded for i in row}
    }
    return [[known[index] for index in row] for row in encoded]


def _bare(piece: str) -> str:
    return piece.removesuffix("</w>")


def one_language(tokenizer: Any) -> bool:
    """Whether a tokenizer is of one language: the pieces of several make a vocabulary of 100,000 or more."""
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    return 0 < int(getattr(inner, "vocab_size", 0) or 0) < 100_000


def clip_tokenizer() -> Any:
    """The tokenizer of CLIP and of most models after it; needs no weights."""
    import open_clip

    return open_clip.SimpleTokenizer()


def wants_quick_gelu(model: str, pretrained: str | None) -> bool | None:
    """Whether the weights of a tag were trained with QuickGELU; None if nobody says (a file, a folder, no such tag).

    QuickGELU is x sigmoid(1.702 x), the activation of OpenAI's and some later models. Both towers use it, and the
    weights load without a word into a model with GELU, which then computes other features.

    >>> wants_quick_gelu("ViT-B-32", "openai"), wants_quick_gelu("ViT-B-32", "laion2b_s34b_b79k")
    (True, False)
    """
    import open_clip

    if pretrained is None or ":" in model or Path(pretrained).is_file():
        return None
    settings = open_clip.get_pretrained_cfg(model, pretrained)
    return bool(settings.get("quick_gelu")) if settings else None


def say_activation(model: str, pretrained: str | None, network: nn.Module) -> None:
    """Which activation weights of unknown origin are run with, on one line."""
    import open_clip

    name = "QuickGELU" if uses_quick_gelu(network) else "GELU"
    other = "GELU" if name == "QuickGELU" else "QuickGELU"
    if model.startswith("local-dir:"):
        how = f"quick_gelu in open_clip_config.json says so; set it to {str(name == 'GELU').lower()}"
    else:
        twin = model.removesuffix("-quickgelu") if name == "QuickGELU" else f"{model}-quickgelu"
        how = f"encoder.model={twin}" if twin in open_clip.list_models() else "another encoder.model"
        how = f"use {how}"
    log.info("encoder '%s': its transformers compute with %s; if %s was trained with %s (OpenAI, MetaCLIP and DFN use "
             "QuickGELU, most others GELU), %s", model, name, pretrained or "it", other, how)  # fmt: skip


def load(model: str, pretrained: str | None, device: str) -> tuple[Any, Any, Any, bool]:
    """Model, evaluation preprocessing and tokenizer of an open_clip model, weights loaded; no code of its files runs.

    The activation is that of the weights' tag (``wants_quick_gelu``), whatever the name of the model says; of weights
    without a tag it is said which one they run with.

    Returns:
        The three, and whether the model's own settings had another activation.

    Raises:
        UserError: its files ask for more than parts of the libraries (``cbm.encoders.foreign_code``), or the model
            computes with QuickGELU and the tag's weights were trained with GELU.
    """
    with warnings.catch_warnings(record=True) as said, no_foreign_code(model):
        warnings.simplefilter("always")
        import open_clip

        if model.startswith("local-dir:"):
            check_folder(Path(model.removeprefix("local-dir:")), model)
        config = open_clip.get_model_config(model)
        check_settings(config, model)
        quick = wants_quick_gelu(model, pretrained)
        if quick is False and config.get("quick_gelu") and model.endswith("-quickgelu"):
            raise UserError(
                f"encoder '{model}' computes with QuickGELU, but its weights '{pretrained}' were trained with GELU: "
                f"use encoder.model={model.removesuffix('-quickgelu')}"
            )
        forced = bool(quick) and not config.get("quick_gelu")
        network, preprocess = open_clip.create_model_from_pretrained(
            model, pretrained=pretrained, device=device, weights_only=True, force_quick_gelu=forced
        )
        check_preprocessing(network, preprocess, model)
        text = config["text_cfg"]
        if text.get("hf_tokenizer_name"):
            tokenizer = open_clip.get_tokenizer(model, trust_remote_code=False)
        else:
            tokenizer = open_clip.SimpleTokenizer(
                context_length=text.get("context_length", 77), **text.get("tokenizer_kwargs", {})
            )
    pass_on(said, f"encoder '{model}'")
    if forced:
        log.info("encoder '%s': the weights '%s' were trained with QuickGELU, which is used", model, pretrained)
    elif (
        quick is None
        and not model.startswith("hf-hub:")
        and Path(model.rpartition(":")[2]).resolve() != BUNDLED.resolve()
    ):
        say_activation(model, pretrained, network)
    return network, preprocess, tokenizer, forced
