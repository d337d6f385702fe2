"""``python -m cbm audit RUN audit.yaml``: which of the concepts on a person's list does a finished run use?

The list says of each concept whether it is wanted, unwanted or neutral:

    - {concept: water in background, expect: unwanted, classes: [waterbird]}
    - {concept: long beak, expect: wanted}

It is written before anybody looks at the model, and kept with it: the command fails where an unwanted concept is in use
or a wanted one is not, so that a new model of the same pictures is checked without anybody looking.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cbm.concepts.readers import match_concepts, normalise_text
from cbm.data import FeatureData, FeatureSplit
from cbm.data.text_store import text_encoder
from cbm.editing import alike
from cbm.errors import UserError, did_you_mean
from cbm.files.parsing import read_yaml
from cbm.files.run_directory import seed_of
from cbm.layers import ConceptBottleneck, one_class, require_linear
from cbm.metrics.audit import Use, chance_flips, concept_use, phrase_use
from cbm.metrics.groups import group_index
from cbm.metrics.truth import auroc_matrix
from cbm.trained import TrainedModel, load

EXPECTATIONS = ("wanted", "unwanted", "neutral")
FOUND, MISSING, UNWANTED = "found", "missing", "unwanted in use"
NOT_USED, UNKNOWN = "not in use", "cannot be said"


@dataclass(frozen=True)
class AuditEntry:
    """A line of the list.

    Attributes:
        concept: the concept, in words.
        expect: wanted, unwanted or neutral.
        classes: classes that it is about; empty for all.
    """

    concept: str
    expect: str
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Audited:
    """What a run does with a concept of the list.

    Attributes:
        entry: the line of the list.
        verdict: found, missing, unwanted in use, not in use, or cannot be said.
        in_bank: whether the bank has it; otherwise it is read through the class vectors.
        rank: its place among the concepts by importance, from 1 on; None if it is not in the bank.
        use: how much decisions depend on it; None if that cannot be said.
        auroc: how well its score ranks pictures that show it above others; None without labels.
        group: the group of pictures in which most decisions change, with their share; None without groups or changes.
    """

    entry: AuditEntry
    verdict: str
    in_bank: bool
    rank: int | None = None
    use: Use | None = None
    auroc: float | None = None
    group: tuple[str, float] | None = None

    @property
    def fails(self) -> bool:
        """Whether the run is not what the list expects."""
        return self.verdict == UNWANTED or (self.verdict in (MISSING, UNKNOWN) and self.entry.expect == "wanted")


def load_audit(path: Path, classes: Sequence[str]) -> list[AuditEntry]:
    """Read ``audit.yaml``. Nothing in it is executed.

    Args:
        path: the file.
        classes: names of the classes of the run.

    Raises:
        UserError: the file cannot be read, is no list, or an entry is not one; the message says which.
    """
    content = read_yaml(path)
    if not isinstance(content, list) or not content:
        raise UserError(f"'{path}' is no audit list: expected entries like '- {{concept: ..., expect: unwanted}}'")
    entries = []
    for number, entry in enumerate(content, start=1):
        where = f"'{path}' entry {number}"
        if not isinstance(entry, dict) or not {"concept", "expect"} <= entry.keys():
            raise UserError(f"{where}: expected a mapping with 'concept' and 'expect', got {str(entry)[:60]!r}")
        for key in entry:
            if key not in ("concept", "expect", "classes"):
                nearest = did_you_mean(str(key), ["concept", "expect", "classes"])
                raise UserError(f"{where}: unknown key '{key}': {nearest}")
        if entry["expect"] not in EXPECTATIONS:
            nearest = did_you_mean(str(entry["expect"]), EXPECTATIONS)
            raise UserError(f"{where}: expect is '{entry['expect']}': {nearest}")
        named = entry.get("classes") or []
        if not isinstance(named, list):
            raise UserError(f"{where}: 'classes' is {named!r}; expected a list of names")
        for name in map(str, named):
            if name not in classes:
                raise UserError(f"{where}: no class '{name}' in this model: {did_you_mean(name, classes)}")
        entries.append(AuditEntry(str(entry["concept"]), str(entry["expect"]), tuple(map(str, named))))
    return entries


@torch.no_grad()
def audit_run(path: Path, listed: Path, cache: Path, split: str = "test") -> list[Audited]:
    """What a finished run does with every concept of a list.

    Args:
        path: the run directory.
        listed: the list, ``audit.yaml``.
        cache: folder of the feature store.
        split: pictures whose decisions count: test or val.

    Raises:
        UserError: the run does not exist or has no linear concepts, or the list is not one.
    """
    trained = load(path)
    model = require_linear(trained.model, trained.bank)
    one_class(model, "an audit")
    entries = load_audit(listed, trained.classes)
    _, data = trained.read((split,), cache=cache)
    pictures = data.splits[split]
    chance = chance_flips(model, pictures.x, seed=seed_of(trained.config.seed))
    return [_audited(trained, model, entry, data, pictures, cache, chance) for entry in entries]


def _audited(
    trained: TrainedModel, model: ConceptBottleneck, entry: AuditEntry, data: FeatureData, pictures: FeatureSplit,
    cache: Path, chance: float,
) -> Audited:  # fmt: skip
    """One line of the list."""
    assert trained.bank is not None
    texts = [normalise_text(text) for text in trained.bank.texts]
    classes = [trained.classes.index(name) for name in entry.classes]
    in_bank = normalise_text(entry.concept) in texts
    if in_bank:
        column = texts.index(normalise_text(entry.concept))
        own = torch.zeros(len(texts), dtype=torch.bool)
        own[column] = True
        others = (alike(model, own) & ~own).nonzero().flatten().tolist()
        use = concept_use(model, pictures.x, [column, *others], classes, chance)
        importance = model.importance().abs().amax(dim=0)
        rank = 1 + int((importance > importance[column]).sum())
        scores = model.scores(pictures.x, [column])
    elif model.activation is not None or not trained.has_text:
        return Audited(entry, MISSING if entry.expect == "wanted" else UNKNOWN, False)
    else:
        direction = text_encoder(trained.encoder, cache, False)([entry.concept])[0]
        use, rank = phrase_use(model, pictures.x, direction, classes, chance), None
        scores = (pictures.x @ direction)[:, None]
    auroc = None
    if pictures.concepts is not None and (pair := match_concepts([entry.concept], data.concept_names)):
        value = float(auroc_matrix(scores, pictures.concepts[:, [pair[0][1]]])[0][0, 0])
        auroc = None if np.isnan(value) else value
    return Audited(entry, verdict(entry.expect, use), in_bank, rank, use, auroc, _most_changed(use, pictures, data))


def verdict(expect: str, use: Use) -> str:
    """What is said of a concept that is wanted, unwanted or neutral."""
    if expect == "wanted":
        return FOUND if use.in_use else MISSING
    if use.in_use:
        return UNWANTED if expect == "unwanted" else FOUND
    return NOT_USED


def _most_changed(use: Use, pictures: FeatureSplit, data: FeatureData) -> tuple[str, float] | None:
    """The group in which the largest share of the decisions changes."""
    shares = {key: float(use.changed[rows].mean()) for key, rows in group_index(pictures).items()}
    if not shares or not max(shares.values()):
        return None
    column, label, value = max(shares, key=lambda key: shares[key])
    return f"{data.classes[label]}, {column}: {data.group_names[column][value]}", shares[column, label, value]
