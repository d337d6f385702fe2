"""The concept bank: the concepts that a model may use. One concept is one column; several classes may own it."""

import hashlib
import json
import logging
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cbm.errors import UserError, did_you_mean
from cbm.files import new_folder, write_atomically
from cbm.files.names import one_form
from cbm.files.parsing import read_json
from cbm.files.tensors import read_tensors, write_tensors

log = logging.getLogger(__name__)

LARGE = 10_000_000
"""Bytes of a bank from which on it is said that it is read."""
OWNERS = "owners"
"""Key of the provenance that says who chose the owners, if the source of the concepts does not name them."""
EMBEDDED_AS = "embedded_as"
"""Key of the provenance that holds the text a concept had when its embedding was written, if it was renamed since."""


@dataclass(frozen=True)
class Concept:
    """A phrase with its owners and origin.

    Attributes:
        text: the phrase.
        classes: names of the classes that own the concept, because it was written for them; may be empty.
        group: name of a group of concepts that exclude each other (colours of the belly), or None.
        score: score given by the source of the concept, or None.
        provenance: source file, prompt, filters passed, and phrases merged into this one.
    """

    text: str
    classes: tuple[str, ...] = ()
    group: str | None = None
    score: float | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Dropped:
    """A phrase that did not become a concept.

    Attributes:
        text: the phrase.
        classes: names of the classes that it was written for.
        reason: reason why it was left out.
    """

    text: str
    classes: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class ConceptBank:
    """Concepts in order, with their embeddings once an encoder has read them.

    Attributes:
        name: name of the bank.
        source: file that the bank was read from.
        concepts: the K concepts.
        encoder: fingerprint of the encoder of ``embeddings``, or None.
        embeddings: unit-norm embeddings ``[K, D]``, or None.
        dropped: phrases that were left out, with the reasons.
        says: what the phrases say of the classes of a data set ``[K, C]``, as a text encoder understands them that did
            not make ``embeddings`` (``cbm.metrics.reader``); None if none was asked. It is not saved.
        said_by: name of that encoder.
    """

    name: str
    source: str
    concepts: tuple[Concept, ...]
    encoder: str | None = None
    embeddings: Tensor | None = None
    dropped: tuple[Dropped, ...] = ()
    says: Tensor | None = None
    said_by: str | None = None

    def __len__(self) -> int:
        return len(self.concepts)

    @property
    def texts(self) -> list[str]:
        """The K phrases."""
        return [concept.text for concept in self.concepts]

    @property
    def phrases(self) -> list[str]:
        """What the K concepts say: their texts, without the number of a unit whose word others have too ("dog (2)")."""
        return [(concept.provenance.get("unit") or {}).get("word") or concept.text for concept in self.concepts]

    def directions(self) -> Tensor:
        """The embeddings ``[K, D]``.

        Raises:
            ValueError: the bank has not been embedded.
        """
        if self.embeddings is None:
            raise ValueError(f"concept bank '{self.name}' has not been embedded")
        return self.embeddings

    @property
    def classes(self) -> list[str]:
        """Names of all owning classes, in order of appearance."""
        return list(dict.fromkeys(name for concept in self.concepts for name in concept.classes))

    def index(self, text: str) -> int:
        """Column of the concept ``text``.

        Raises:
            UserError: there is no such concept; the message names the nearest.
        """
        try:
            return self.texts.index(one_form(text))
        except ValueError:
            raise UserError(f"unknown concept '{text}': {did_you_mean(text, self.texts)}") from None

    def excluded_by(self, text: str) -> list[str]:
        """The other concepts of its group, which are absent where it is present.

        None of a group of which some class owns two: it shows both.
        """
        group = self.concepts[self.index(text)].group
        members = [concept for concept in self.concepts if group is not None and concept.group == group]
        owners = [name for concept in members for name in set(concept.classes)]
        return [one.text for one in members if one.text != text] if len(owners) == len(set(owners)) else []

    def owners(self, classes: list[str]) -> Tensor:
        """Which class owns which concept, ``[C, K]`` bool with rows in the order of ``classes``."""
        row = {name: i for i, name in enumerate(classes)}
        matrix = torch.zeros(len(classes), len(self), dtype=torch.bool)
        pairs = [(row[name], k) for k, concept in enumerate(self.concepts) for name in concept.classes if name in row]
        if pairs:
            matrix[tuple(torch.tensor(pairs).T)] = True
        return matrix

    def take(self, columns: Iterable[int]) -> "ConceptBank":
        """The concepts at ``columns``, in that order."""
        columns = list(columns)
        embeddings = None if self.embeddings is None else self.embeddings[columns]
        says = None if self.says is None else self.says[columns]
        return replace(self, concepts=tuple(self.concepts[k] for k in columns), embeddings=embeddings, says=says)

    @property
    def owners_chosen(self) -> bool:
        """Whether a method chose the owners on images; otherwise the source of the concepts names them."""
        return any(OWNERS in concept.provenance for concept in self.concepts)

    def owned_by(self, owners: Tensor, classes: list[str], chosen_by: str = "") -> "ConceptBank":
        """The same concepts with other owners.

        Args:
            owners: which class owns which concept, ``[C, K]`` bool.
            classes: C class names.
            chosen_by: name of the method that chose them on images; empty if the source of the concepts names them.
        """
        names = [tuple(classes[c] for c in column.nonzero().flatten()) for column in owners.T]
        said = {OWNERS: f"chosen by {chosen_by}"} if chosen_by else {}
        pairs = zip(self.concepts, names)
        concepts = (replace(c, classes=owned, provenance={**c.provenance, **said}) for c, owned in pairs)
        return replace(self, concepts=tuple(concepts))

    def keep(self, reasons: list[str | None], passed: str) -> "ConceptBank":
        """Drop the concepts that have a reason; the others keep their embeddings.

        Args:
            reasons: reason to drop each of the K concepts, or None to keep it.
            passed: name of the filter, added to the provenance of the concepts that are kept.
        """
        kept, dropped = [], []
        for concept, reason in zip(self.concepts, reasons):
            if reason is None:
                filters = [*concept.provenance.get("filters", []), passed]
                kept.append(replace(concept, provenance={**concept.provenance, "filters": filters}))
            else:
                dropped.append(Dropped(concept.text, concept.classes, reason))
        rest = self.take(k for k, reason in enumerate(reasons) if reason is None)
        return replace(rest, concepts=tuple(kept), dropped=self.dropped + tuple(dropped))

    def to_json(self) -> bytes:
        """Contents of ``bank.json``."""
        content = {
            "name": self.name,
            "source": self.source,
            "encoder": self.encoder,
            "concepts": [asdict(concept) for concept in self.concepts],
            "dropped": [asdict(dropped) for dropped in self.dropped],
        }
        return json.dumps(content, indent=1, ensure_ascii=False).encode()

    def save(self, folder: Path) -> None:
        """Write ``bank.json`` and, if there are embeddings, ``embeddings.safetensors`` into ``folder``.

        A folder that is not there yet appears with both, or not at all.

        Raises:
            UserError: the disk is full, or the place cannot be written to.
        """
        if not folder.exists():
            with new_folder(folder) as whole:
                self.save(whole)
            return
        write_atomically(folder / "bank.json", self.to_json())
        if self.embeddings is not None:
            about = {"texts": _fingerprint([c.provenance.get(EMBEDDED_AS, c.text) for c in self.concepts])}
            write_tensors(folder / "embeddings.safetensors", {"embeddings": self.embeddings}, about)


def load_bank(path: Path) -> ConceptBank:
    """Read a bank written by ``ConceptBank.save`` (the folder, or its ``bank.json``).

    Raises:
        UserError: the file is missing, damaged, or not a bank, or the embeddings do not belong to it.
    """
    file = path / "bank.json" if path.is_dir() else path
    if file.is_file() and (size := file.stat().st_size) > LARGE:
        log.info("reading '%s' (%.0f MB)", file, size / 1e6)
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("concepts"), list):
        raise UserError(f"'{file}' is not a concept bank: expected {{\"concepts\": [...]}}")
    left_out = content.get("dropped") or []
    if not isinstance(left_out, list):
        raise UserError(f"'{file}': 'dropped' is {json.dumps(left_out)[:60]}; expected a list")
    concepts = tuple(
        _concept(entry, f"'{file}' is not a concept bank: concept {n}")
        for n, entry in enumerate(content["concepts"], start=1)
    )
    dropped = tuple(_dropped(entry, f"'{file}'") for entry in left_out)
    encoder = content.get("encoder")
    bank = ConceptBank(
        str(content.get("name") or file.stem),
        str(content.get("source") or file),
        concepts,
        None if encoder is None else str(encoder),
        dropped=dropped,
    )
    beside = file.parent / "embeddings.safetensors"
    if file.name == "bank.json" and beside.is_file():
        written = [_as_embedded(entry) for entry in content["concepts"]]
        bank = replace(bank, embeddings=_embeddings(beside, bank, written))
    return bank


def _concept(entry: Any, where: str) -> Concept:
    """One entry of ``concepts``."""
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str) or not one_form(entry["text"]):
        raise UserError(f"{where}: expected a mapping with a 'text', got {json.dumps(entry)[:60]}")
    classes, group, score = entry.get("classes") or [], entry.get("group"), entry.get("score")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise UserError(f"{where}: 'classes' is {json.dumps(classes)[:60]}; expected a list of names")
    if not isinstance(group, str | None):
        raise UserError(f"{where}: 'group' is {json.dumps(group)[:60]}; expected a name")
    if not isinstance(score, int | float | None) or (isinstance(score, int | float) and not abs(score) < math.inf):
        raise UserError(f"{where}: 'score' is {json.dumps(score)[:60]}; expected a number")
    provenance = entry.get("provenance") or {}
    if not isinstance(provenance, dict):
        raise UserError(f"{where}: 'provenance' is {json.dumps(provenance)[:60]}; expected a mapping")
    return Concept(one_form(entry["text"]), tuple(map(one_form, classes)), group, score, provenance)


def _dropped(entry: Any, where: str) -> Dropped:
    """One entry of ``dropped``."""
    try:
        return Dropped(str(entry["text"]), tuple(map(str, entry["classes"])), str(entry["reason"]))
    except (KeyError, TypeError) as error:
        raise UserError(f"{where}: 'dropped' holds {json.dumps(entry)[:60]}; expected text, classes, reason") from error


def _embeddings(file: Path, bank: ConceptBank, texts: list[str]) -> Tensor:
    """The embeddings ``[K, D]`` beside a bank, if they are of its phrases as they were written."""
    tensors, about = read_tensors(file)
    embeddings = tensors.get("embeddings")
    if embeddings is None or embeddings.dim() != 2 or not embeddings.is_floating_point():
        raise UserError(f"'{file}' has no matrix 'embeddings'")
    if len(embeddings) != len(bank):
        raise UserError(f"'{file}' has {len(embeddings)} rows, but the bank beside it has {len(bank)} concepts")
    if isinstance(about, dict) and about.get("texts") != _fingerprint(texts):
        raise UserError(
            f"'{file}' is of other phrases than the bank beside it: remove it, and the phrases are encoded again"
        )
    return embeddings


def _as_embedded(entry: dict[str, Any]) -> str:
    """The text of a concept when its embedding was written."""
    former = (entry.get("provenance") or {}).get(EMBEDDED_AS)
    return former if isinstance(former, str) else entry["text"]


def _fingerprint(texts: list[str]) -> str:
    return hashlib.blake2b(json.dumps(texts).encode(), digest_size=16).hexdigest()
