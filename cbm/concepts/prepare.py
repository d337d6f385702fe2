"""Prepare the candidate concepts of a data set: find a bank, name its owners, filter and embed it."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cbm.concepts.bank import Concept, ConceptBank
from cbm.concepts.hygiene import clean_class_name, clean_class_names, drop_class_names, drop_unfit, spoken_name
from cbm.concepts.readers import normalise_text, read_bank
from cbm.data.text_store import EncodeText
from cbm.errors import UserError, did_you_mean
from cbm.files.console import warn_once
from cbm.files.names import one_form, quoted

log = logging.getLogger(__name__)

GENERAL_FOR_THE_OTHERS = "concepts.missing_classes=general gives such classes the phrases of concepts/general.txt"


def find_bank(
    source: str, dataset_bank: str | None, classes: list[str], shipped: list[Path], key: str | None = None
) -> ConceptBank:
    """The bank that ``concepts.source`` names.

    Args:
        source: a file, or ``auto``: the data set's own bank, else a shipped one that has phrases for every class, else
            the general visual concepts.
        dataset_bank: file named on the data set's card, or None.
        classes: class names of the data set.
        shipped: files of the banks that come with cbm or lie in the working folder; one of them is ``general``.
        key: name of the vectors in a file that holds several.

    Raises:
        UserError: the file does not exist, or is not a bank.
    """
    if source != "auto":
        return read_bank(Path(source), key)
    if dataset_bank is not None:
        return read_bank(Path(dataset_bank))
    for file in (file for file in shipped if file.suffix == ".json"):
        try:
            bank = read_bank(file)
        except UserError as error:  # of a folder concepts/ that is something else's
            log.warning("concepts: passed over '%s': %s", file, error)
            continue
        if set(classes) <= set(match_classes(bank.classes, classes).values()):
            log.info("concepts: %s has phrases for all %d classes", file.name, len(classes))
            return bank
    general = next(file for file in shipped if file.stem == "general")
    log.info("concepts: no shipped bank knows these classes; using the general visual concepts (%s)", general.name)
    return read_bank(general)


def match_classes(names: Sequence[str], classes: Sequence[str]) -> dict[str, str]:
    """Class of the data set by each name of a bank that means one.

    Equal names come first, then names that are equal as they are said, then without running numbers
    (``clean_class_names``), then without any number with leading zeros; a class that was found by a better way is not
    found by a worse one, and none where two would do.

    Args:
        names: class names of the bank.
        classes: class names of the data set.

    Example:
        >>> match_classes(["laysan albatross", "Crow"], ["001.Laysan_Albatross", "002.American_Crow"])
        {'laysan albatross': '001.Laysan_Albatross'}
    """
    found: dict[str, str] = {}
    ways = [
        (list(map(one_form, names)), list(map(one_form, classes))),
        (list(map(spoken_name, names)), list(map(spoken_name, classes))),
        (clean_class_names(names), clean_class_names(classes)),
        (list(map(clean_class_name, names)), list(map(clean_class_name, classes))),
    ]
    for said_there, said_here in ways:
        taken = set(found.values())
        counts = Counter(said_here)
        here = {said: name for said, name in zip(said_here, classes) if name not in taken and counts[said] == 1}
        found |= {name: here[said] for name, said in zip(names, said_there) if name not in found and said in here}
    return {name: found[name] for name in names if name in found}


def adopt_classes(
    bank: ConceptBank, classes: list[str], general: ConceptBank | None = None, *, strict: bool = True, hint: str = ""
) -> ConceptBank:
    """Rename the bank's classes to those of the data set, and leave out classes that it does not have.

    Names are compared as by ``match_classes``. Concepts learned
    from images or found in features stay, whichever class owned them, because they were not written for a class.

    Args:
        bank: the bank as it was read.
        classes: class names of the data set.
        general: phrases for the classes that the bank has none for.
        strict: whether a bank without phrases for a class is refused where there are no general ones.
        hint: what to do about such classes, for the message.

    Raises:
        UserError: a class of the data set has no phrases although the bank is written per class; or no class has any.
    """
    if not bank.classes:
        return bank
    known = match_classes(bank.classes, classes)
    unknown = [name for name in bank.classes if name not in known]
    if all("cav" in concept.provenance or "unit" in concept.provenance for concept in bank.concepts):
        owned = [tuple(known[name] for name in concept.classes if name in known) for concept in bank.concepts]
        return replace(bank, concepts=tuple(replace(c, classes=names) for c, names in zip(bank.concepts, owned)))
    missing = [name for name in classes if name not in known.values()]
    if missing and (not known or (strict and general is None)):
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        said = [f"concept bank '{bank.source}' has no phrases for class '{missing[0]}'{more}"]
        if unknown:
            said.append(f"it has phrases for '{unknown[0]}', which the data set does not have")
            said.append(did_you_mean(missing[0], unknown))
        raise UserError("; ".join(filter(None, said)) + hint)
    if unknown:
        log.info("concepts: left out the phrases of %d classes the data set does not have", len(unknown))
    kept = []
    for concept in bank.concepts:
        owners = tuple(known[name] for name in concept.classes if name in known)
        if owners or not concept.classes:
            kept.append(replace(concept, classes=owners))
    columns = [k for k, c in enumerate(bank.concepts) if not c.classes or any(name in known for name in c.classes)]
    adopted = replace(bank.take(columns), concepts=tuple(kept))
    return adopted if general is None or not missing else _with_general(adopted, missing, general)


def _with_general(bank: ConceptBank, missing: list[str], general: ConceptBank) -> ConceptBank:
    """The bank with the general phrases for classes that it has none for; a phrase of both gets them as owners.

    Raises:
        UserError: the bank is embedded, so phrases cannot be added.
    """
    if bank.embeddings is not None:
        raise UserError(
            f"concept bank '{bank.source}' is embedded already: general phrases for class '{missing[0]}' cannot be "
            "added; remove embeddings.safetensors beside bank.json to embed its texts anew"
        )
    log.info("concepts: %d class(es) without phrases of their own get the %d general ones, first: '%s'",
             len(missing), len(general), missing[0])  # fmt: skip
    rows = {normalise_text(text): row for row, text in enumerate(bank.texts)}
    concepts = list(bank.concepts)
    for phrase in general.concepts:
        row = rows.get(normalise_text(phrase.text))
        if row is None:
            concepts.append(replace(phrase, classes=tuple(missing)))
        else:
            concepts[row] = replace(concepts[row], classes=(*concepts[row].classes, *missing))
    return replace(bank, concepts=tuple(concepts))


def prepare_bank(
    bank: ConceptBank,
    classes: list[str],
    encode_text: EncodeText,
    encoder: str | None,
    *,
    hygiene: bool,
    max_words: int,
    remove_class_names: str,
    general: ConceptBank | None = None,
) -> ConceptBank:
    """Name the owners as the data set does, leave out unfit phrases, and embed the others.

    A bank that was embedded and saved (``ConceptBank.save``) is taken as it is. Phrases with vectors of unknown origin
    (``bank.encoder`` is None) are filtered as others are, and keep their vectors.

    Args:
        bank: the bank as it was read.
        classes: class names of the data set.
        encode_text: function from phrases to features.
        encoder: fingerprint of the encoder; None if that of the features is not known.
        hygiene: whether phrases that are not visual are left out.
        max_words: largest number of words of a phrase.
        remove_class_names: which class names a phrase may not contain: ``own``, ``any`` or ``none``.
        general: phrases for the classes that the bank has none for; None refuses such a bank.

    Raises:
        UserError: the bank was embedded by another encoder, or no phrase is left for some class.
    """
    bank = adopt_classes(bank, classes, general, hint=f"; {GENERAL_FOR_THE_OTHERS}")
    if bank.embeddings is not None and bank.encoder is not None:
        if encoder not in (None, bank.encoder):
            raise UserError(
                f"concept bank '{bank.source}' lies in the embedding space of another encoder ({bank.encoder}; this "
                f"run's is {encoder}): use that encoder, or remove embeddings.safetensors beside bank.json to embed "
                "its texts anew"
            )
        return bank
    before = bank
    if hygiene:
        bank = drop_unfit(bank, max_words)
    bank = drop_class_names(bank, classes, remove_class_names)
    if not bank.concepts or (bare := [name for name in before.classes if name not in bank.classes]):
        whom = f"class '{bare[0]}'" if bank.concepts else "any class"
        raise UserError(
            f"concept bank '{bank.source}': no phrase is left for {whom} after filtering "
            f"(see python -m cbm concepts lint {bank.source}); concepts.hygiene=false keeps all"
        )
    if left_out := len(before) - len(bank):
        log.info("concepts: %d of %d left out as not visual, cut off or naming a class", left_out, len(before))
    if bank.embeddings is not None:
        return replace(bank, encoder=encoder)
    return against_references(replace(bank, embeddings=encode_text(bank.texts), encoder=encoder), encode_text)


def against_references(bank: ConceptBank, encode_text: EncodeText) -> ConceptBank:
    """The bank with every phrase that is seen against a reference ("ulcer | skin") as the direction from the one to the
    other, ``(t+ - t_ref) / |t+ - t_ref|``; the length stands in the concept's provenance.

    Args:
        bank: the embedded bank.
        encode_text: function from phrases to features.

    Raises:
        UserError: a phrase and its reference are the same to the encoder.
    """
    rows = [k for k, concept in enumerate(bank.concepts) if "contrast" in concept.provenance]
    if not rows:
        return bank
    references = [str(bank.concepts[k].provenance["contrast"]["reference"]) for k in rows]
    directions, concepts = bank.directions().clone(), list(bank.concepts)
    apart = directions[rows] - encode_text(references)
    for k, reference, away in zip(rows, references, apart):
        length = float(away.norm())
        if length < 1e-4:
            raise UserError(f"concept '{bank.texts[k]} | {reference}': the encoder cannot tell the two apart")
        directions[k] = away / length
        about = {"reference": reference, "norm": length}
        concepts[k] = replace(concepts[k], provenance={**concepts[k].provenance, "contrast": about})
    return replace(bank, embeddings=directions, concepts=tuple(concepts))


def warn_shared_reference(bank: ConceptBank, x: Tensor) -> None:
    """Warn if phrases seen against references score alike on images: one reference adds the same number to all scores.

    Args:
        bank: the embedded bank.
        x: unit-norm features ``[N, D]`` in the space of its directions.
    """
    rows = [k for k, concept in enumerate(bank.concepts) if "contrast" in concept.provenance]
    if len(rows) < 2 or bank.directions().shape[1] != x.shape[1]:
        return
    alike = torch.corrcoef((x[:4096].float() @ bank.directions()[rows].T).T)
    mean = float((alike.sum() - len(rows)) / (len(rows) * (len(rows) - 1)))
    if mean > 0.8:
        warn_once(
            f"{len(rows)} contrast concepts have nearly the same scores on these images (mean correlation {mean:.2f}): "
            "what they are seen against says more than they do; choose a reference nearer to each"
        )


def label_bank(
    names: list[str],
    groups: dict[str, list[str]],
    owners: Tensor,
    classes: list[str],
    source: str,
    encode_text: EncodeText | None,
    encoder: str | None,
) -> ConceptBank:
    """The bank of the concepts that a data set labels.

    Args:
        names: names of the A concepts.
        groups: names of concepts that exclude each other, by name of the group.
        owners: which classes show a concept, ``[C, A]`` bool.
        classes: C class names.
        source: name of the data set.
        encode_text: function from phrases to features; None if the encoder reads no text, then nothing is embedded.
        encoder: fingerprint of the encoder.
    """
    group_of = {name: group for group, members in groups.items() for name in members}
    concepts = tuple(Concept(name, group=group_of.get(name), provenance={"source": source}) for name in names)
    bank = ConceptBank(f"{source} concepts", source, concepts).owned_by(owners, classes)
    return bank if encode_text is None else replace(bank, embeddings=encode_text(bank.texts), encoder=encoder)


def class_name_bank(classes: list[str], template: str, encode_text: EncodeText, encoder: str | None) -> ConceptBank:
    """A bank with one concept per class: its name in a prompt.

    Args:
        classes: C class names.
        template: prompt for a class name (``a photo of a {}.``).
        encode_text: function from phrases to features.
        encoder: fingerprint of the encoder.

    Raises:
        UserError: the template has no place ``{}`` for the class name.
    """
    if "{}" not in template:
        raise UserError(f"dataset.template='{template}' has no place {{}} for the class name")
    prompts = [template.format(name) for name in clean_class_names(classes)]
    for prompt, count in Counter(prompts).items():
        if count > 1:
            same = quoted(name for name, said in zip(classes, prompts) if said == prompt)
            warn_once(f"classes {same} have the same prompt '{prompt}': nothing tells them apart")
    concepts = tuple(
        Concept(prompt, (name,), provenance={"source": "class name"}) for prompt, name in zip(prompts, classes)
    )
    bank = ConceptBank("class names", "class names", concepts, encoder)
    return replace(bank, embeddings=encode_text(bank.texts))
