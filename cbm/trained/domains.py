"""What an editor for another domain may look at, gathered from a trained model and images of that domain."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from cbm.concepts.prepare import class_name_bank
from cbm.config import FEATURES
from cbm.data import FeatureSplit, ImageDataset, read_dataset
from cbm.data.encoded import Encoding, encode_splits, reorder_classes
from cbm.data.features import split_test
from cbm.data.text_store import text_encoder
from cbm.editing import DomainEditor, EditContext, load_source_card
from cbm.files import resolve_path
from cbm.files.arrays import ARRAYS
from cbm.layers import one_class, require_linear
from cbm.trained.model import TrainedModel


def support_and_tested(
    model: TrainedModel, card: DictConfig, editor: DomainEditor, images: FeatureSplit, cache: str | Path = "cache"
) -> tuple[FeatureSplit, FeatureSplit]:
    """The labelled images that an editor is shown, and those that its correction is tested on.

    Args:
        model: the model to be corrected.
        card: data set card of the domain's images.
        editor: the editor, which says how many labelled images it uses and, if they are not among ``images``, their
            folder.
        images: labelled images of the domain.
        cache: folder of the feature store.

    Raises:
        UserError: too few images of a class, no such folder, or a class that the model does not know.
    """
    one_class(model.model, "an editor for another domain")
    if editor.support is None:
        return split_test(images, editor.shots, model.classes, editor.seed)
    folder, settings = resolve_path(editor.support), model.encoding(card, cache)
    return labelled_images(model, folder, editor.shots, editor.seed, settings), images


def labelled_images(model: TrainedModel, folder: Path, shots: int, seed: int, settings: Encoding) -> FeatureSplit:
    """At most ``shots`` images per class of a folder ``FOLDER/CLASS/*.jpg``, encoded; a class may be absent.

    Features that were made elsewhere do as well (``dataset=features``).

    Args:
        model: the model whose encoder reads the images.
        folder: folder with one folder of images per class, or a file or folder of features.
        shots: largest number of images per class.
        seed: random seed for the draw.
        settings: how images are encoded.

    Raises:
        UserError: no such folder, or a class that the model does not know.
    """
    kind = FEATURES if model.fingerprint is None or folder.suffix.lower() in ARRAYS else "folder"
    read = reorder_classes(read_dataset(kind, folder.name, folder, {}, to_train=False), model.classes)
    split = next(iter(read.splits.values()))
    order = np.random.default_rng(seed).permutation(len(split))
    rows = np.sort(np.concatenate([order[split.labels[order] == c][:shots] for c in range(len(model.classes))]))
    few = ImageDataset(read.name, model.classes, {"support": split.take(rows)})
    settings = replace(settings, max_skipped=1.0)  # nothing is measured on them
    encoder = None if kind == FEATURES else model.encoder
    return encode_splits(few, encoder, settings, ("support",))[1].splits["support"]


def edit_context(
    model: TrainedModel,
    card: DictConfig,
    support: FeatureSplit,
    images: FeatureSplit,
    *,
    domain: str | None = None,
    cache: str | Path = "cache",
) -> EditContext:
    """What an editor may look at: labelled images of the domain, others without their labels, the source card.

    Args:
        model: the model to be corrected.
        card: data set card of the domain's images, which says how a class name is put into words.
        support: labelled images of the domain.
        images: further images of the domain; their labels are not used.
        domain: name of the domain; by default that of the card.
        cache: folder of the feature store.

    Raises:
        UserError: the model has no linear head on concepts, or the run has no source card.
    """
    bottleneck = require_linear(model.model, model.bank)
    assert model.bank is not None
    zero_shot = None
    if model.has_text:
        encode_text = text_encoder(model.encoder, Path(cache), False)
        names = class_name_bank(model.classes, card.template, encode_text, model.encoder.fingerprint)
        assert names.embeddings is not None
        zero_shot = model.encoder.logit_scale * images.x @ names.embeddings.T
    source = load_source_card(model.path / "source_card.safetensors")
    return EditContext(
        bottleneck, model.bank.texts, model.classes, domain or card.name, source, support, images.x, zero_shot
    )
