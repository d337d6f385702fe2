"""Read images and labels, and encode them into splits of features."""

from cbm.data import (  # noqa: F401  they register themselves
    attribute_readers,
    blood_cells,
    chest,
    feature_files,
    folders,
    imagenet,
    pascal,
    recognition,
    shifted_cells,
    skin,
    spurious,
    tables,
    webdataset,
)
from cbm.data.dataset import ImageDataset, Split
from cbm.data.features import FeatureData, FeatureSplit, unit_norm
from cbm.data.readers import READERS, read_dataset
from cbm.data.splits import complete_splits, few_shot
from cbm.data.store import FeatureStore
from cbm.data.text_store import TextStore

__all__ = [
    "READERS",
    "FeatureData",
    "FeatureSplit",
    "FeatureStore",
    "ImageDataset",
    "Split",
    "TextStore",
    "complete_splits",
    "few_shot",
    "read_dataset",
    "unit_norm",
]
