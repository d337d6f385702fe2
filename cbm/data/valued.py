"""Attributes with values, as the methods take them: levels become yes and no, numbers stand apart."""

from dataclasses import replace

import numpy as np

from cbm.data.dataset import ConceptSpec, ImageDataset, Split


def settled(dataset: ImageDataset) -> ImageDataset:
    """The data set with what no method can take as yes or no made so, or set aside.

    - An ordinal attribute with V levels becomes V - 1 concepts, "severity: mild or more", ..., of which an image shows
      those up to its level.
    - A continuous one leaves ``concepts`` for ``Split.values``, in its unit.

    A data set without such attributes is handed back as it is.
    """
    ordinal = {spec.columns[0]: spec for spec in dataset.specs if spec.kind == "ordinal" and len(spec.columns) == 1}
    numbers = [spec for spec in dataset.specs if spec.kind == "continuous"]
    apart = {spec.columns[0] for spec in numbers}
    if not ordinal and not apart & set(dataset.concept_names):
        return dataset
    names: list[str] = []
    for name in dataset.concept_names:
        if name in ordinal:
            names += steps_of(ordinal[name])
        elif name not in apart:
            names.append(name)
    place = {name: column for column, name in enumerate(dataset.concept_names)}

    def divided(split: Split) -> Split:
        if split.concepts is None:
            return split
        columns = []
        for name in dataset.concept_names:
            column = split.concepts[:, place[name]]
            if name in ordinal:
                for level in range(1, len(ordinal[name].values)):
                    columns.append(np.where(np.isnan(column), np.nan, column >= level))
            elif name not in apart:
                columns.append(column)
        values = split.concepts[:, [place[spec.columns[0]] for spec in numbers]] if numbers else None
        concepts = np.stack(columns, axis=1).astype(np.float32) if columns else None
        return replace(split, concepts=concepts, values=values)

    specs = [replace(spec, columns=steps_of(spec)) if spec.kind == "ordinal" else spec for spec in dataset.specs]
    splits = {name: divided(split) for name, split in dataset.splits.items()}
    return replace(dataset, concept_names=names, splits=splits, specs=specs)


def steps_of(spec: ConceptSpec) -> list[str]:
    """Names of the V - 1 concepts of an ordinal attribute.

    >>> steps_of(ConceptSpec("severity", "ordinal", ["severity"], ["none", "mild", "severe"]))
    ['severity: mild or more', 'severity: severe']
    """
    return [
        f"{spec.name}: {value}" + (" or more" if level < len(spec.values) - 1 else "")
        for level, value in enumerate(spec.values)
        if level
    ]
