"""What WordNet says about classes: what they are (hypernyms) and what they have (meronyms, inherited ones too).

Reads the database of Princeton's WordNet as it is distributed: a folder with ``index.noun`` and ``data.noun``
(Fellbaum, "WordNet: An Electronic Lexical Database", 1998; the format is that of its manual page ``wndb(5)``).
ImageNet's class ids are offsets into version 3.0.
"""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cbm.concepts.bank import ConceptBank
from cbm.concepts.findings import Finding, findings_bank, phrase_key
from cbm.concepts.hygiene import clean_class_name
from cbm.errors import UserError, did_you_mean
from cbm.files.opening import check_regular

log = logging.getLogger(__name__)

RELATIONS = {"hypernym": ("@", "@i"), "part": ("%p",), "substance": ("%s",)}
"""What may link a class to a concept, and the database's symbols for it. Parts and substances are inherited."""


TOO_LITTLE = "too near the root to say much"


@dataclass(frozen=True)
class Synset:
    """Words of one meaning.

    Attributes:
        offset: where it stands in ``data.noun``; ``n`` and this number is its id.
        words: ``("bird",)``, ``("beak", "bill", "neb", "nib")``.
        pointers: (symbol, offset) of every noun it points to.
    """

    offset: int
    words: tuple[str, ...]
    pointers: tuple[tuple[str, int], ...]

    @property
    def id(self) -> str:
        """As ImageNet writes it: ``n01503061``."""
        return f"n{self.offset:08d}"

    def targets(self, relation: str) -> list[int]:
        """Offsets of what it is, or has."""
        return [offset for symbol, offset in self.pointers if symbol in RELATIONS[relation]]


class WordNet:
    """The nouns of a WordNet database.

    Args:
        path: the folder ``dict`` of a distribution, or the folder that holds it.

    Raises:
        UserError: a file is not there, or not in this format.
    """

    def __init__(self, path: Path):
        folder = next((f for f in (path, path / "dict") if (f / "data.noun").exists()), path)
        for name in ("index.noun", "data.noun"):
            if not (folder / name).exists():
                raise UserError(f"no '{name}' in '{path}': expected the folder 'dict' of a WordNet distribution")
            check_regular(folder / name)
        self._file = folder / "data.noun"
        self._data = self._file.read_bytes()
        self._known: dict[int, Synset] = {}
        self._senses: dict[str, list[int]] = {}
        index = folder / "index.noun"
        for number, line in enumerate(index.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if line.startswith("  ") or not line.strip():  # the licence
                continue
            parts = line.split()
            try:
                count, pointers = int(parts[2]), int(parts[3])
                offsets = [int(offset) for offset in parts[6 + pointers :]]
                if parts[1] != "n" or len(offsets) != count:
                    raise ValueError
            except (ValueError, IndexError) as error:
                raise UserError(
                    f"'{index}' line {number} is no entry of WordNet's index of nouns: '{line[:40]}'"
                ) from error
            senses = self._senses.setdefault(phrase_key(parts[0]), [])
            senses += [offset for offset in offsets if offset not in senses]

    def synset(self, offset: int) -> Synset | None:
        """The synset at ``offset``; None if none begins there."""
        if offset not in self._known:
            end = self._data.find(b"\n", offset)
            line = self._data[offset : end if end >= 0 else None].decode(errors="replace")
            if not line.startswith(f"{offset:08d} ") or (offset and self._data[offset - 1 : offset] != b"\n"):
                return None
            self._known[offset] = self._parse(offset, line)
        return self._known[offset]

    def _parse(self, offset: int, line: str) -> Synset:
        parts = line.split(" | ")[0].split()
        try:
            words = 4 + 2 * int(parts[3], 16)
            first, count = words + 1, int(parts[words])
            if not 4 < words < first + 4 * count <= len(parts):
                raise ValueError
            fields = [parts[first + 4 * i : first + 4 * i + 4] for i in range(count)]
            pointers = tuple((symbol, int(to)) for symbol, to, kind, _ in fields if kind == "n")
        except (ValueError, IndexError) as error:
            raise UserError(f"'{self._file}' at byte {offset} is no synset: '{line[:60]}'") from error
        # an adjective's place may follow its word in brackets, a noun's never; underscores stand for spaces
        return Synset(offset, tuple(word.replace("_", " ") for word in parts[4:words:2]), pointers)

    def find(self, name: str, superclass: str | None = None) -> Synset | None:
        """What a class name means.

        Args:
            name: an id (``n02012849``), a numbered sense (``crane.n.05``), or a word: its first sense. Of several words
                that WordNet does not know together the last ones: ``Green_Kingfisher`` is a kingfisher.
            superclass: the first sense that is one of these: of ``crane`` the machine, or with ``bird`` the bird.
        """
        if re.fullmatch(r"n\d{8}", name):
            return self.synset(int(name[1:]))
        if numbered := re.fullmatch(r"(.+)\.n\.(\d+)", name):
            senses, place = self._senses.get(phrase_key(numbered[1]), []), int(numbered[2])
            return self.synset(senses[place - 1]) if 0 < place <= len(senses) else None
        words = phrase_key(clean_class_name(name)).split()
        for start in range(len(words)):
            for offset in self._senses.get(" ".join(words[start:]), []):
                synset = self.synset(offset)
                if synset and (superclass is None or self._is_a(synset, superclass)):
                    return synset
        return None

    def _is_a(self, synset: Synset, superclass: str) -> bool:
        wanted = phrase_key(superclass)
        return any(wanted in map(phrase_key, above.words) for above, _ in self.hypernyms(synset))

    def are_kin(self, phrase: str, synset: Synset) -> bool:
        """Whether a phrase names what a synset is, or a kind of it: is the head of the phrase above it or below it?

        Args:
            phrase: any phrase; ``find`` takes its last words, in their first sense.
            synset: what a class means.
        """
        named = self.find(phrase)
        if named is None:
            return False
        above = {each.offset for each, _ in self.hypernyms(synset)}
        return named.offset in above or synset.offset in {each.offset for each, _ in self.hypernyms(named)}

    def hypernyms(self, synset: Synset) -> Iterator[tuple[Synset, int]]:
        """The synset, what it is, what that is, ..., with the number of steps: the nearest first, each once."""
        seen, level, steps = {synset.offset}, [synset], 0
        while level:
            yield from ((each, steps) for each in level)
            above = dict.fromkeys(to for each in level for to in each.targets("hypernym") if to not in seen)
            seen |= set(above)
            level, steps = [found for to in above if (found := self.synset(to))], steps + 1

    def depth(self, synset: Synset) -> int:
        """Steps from the synset to the root that is nearest: 0 for ``entity``."""
        return next((steps for above, steps in self.hypernyms(synset) if not above.targets("hypernym")), 0)


def read_wordnet(
    path: Path,
    classes: list[str],
    *,
    relations: tuple[str, ...] = tuple(RELATIONS),
    superclass: str | None = None,
    max_words: int = 2,
    min_depth: int = 6,
) -> ConceptBank:
    """What classes are and have, each concept owned by all classes it was found for.

    Args:
        path: folder of the database.
        classes: class names as the data set writes them, or as ``WordNet.find`` reads them.
        relations: relations to use, some of ``RELATIONS``.
        superclass: what all classes are (``bird``), to choose between senses.
        max_words: largest number of words of a phrase.
        min_depth: smallest number of steps from the root to a hypernym that is used: ``animal`` is 6, ``organism`` 5.

    Returns:
        A bank like that of ``read_conceptnet``; a concept is the first word of its synset, whose id, the synset it was
        found at and the steps to there are in the provenance.

    Raises:
        UserError: no such database, damaged, an unknown relation, or nothing about any class.
    """
    if unknown := [relation for relation in relations if relation not in RELATIONS]:
        raise UserError(f"unknown relation '{unknown[0]}' of WordNet: {did_you_mean(unknown[0], list(RELATIONS))}")
    nouns = WordNet(path)
    found: dict[str, Finding] = {}
    by_head = []
    for name in dict.fromkeys(classes):
        synset = nouns.find(name, superclass)
        if synset is None:
            continue
        if not re.search(r"n\d{8}$|\.n\.\d+$", name) and phrase_key(clean_class_name(name)) not in map(
            phrase_key, synset.words
        ):
            by_head.append(f"'{name}' ({synset.words[0]})")
        for above, steps in nouns.hypernyms(synset):
            for relation in relations:
                at = [above.offset] * (steps > 0) if relation == "hypernym" else above.targets(relation)
                for target in filter(None, map(nouns.synset, at)):
                    entry = found.setdefault(target.words[0].casefold(), Finding(reason=TOO_LITTLE))
                    provenance = {"relation": relation, "synset": target.id, "of": above.id, "steps": steps}
                    entry.add([name], (-steps,), provenance)
                    if relation != "hypernym" or nouns.depth(target) >= min_depth:
                        entry.reason = None
    if by_head:
        shown = ", ".join(by_head[:5]) + (", ..." if len(by_head) > 5 else "")
        log.warning("concepts: WordNet knows %d classes by their last words only: %s", len(by_head), shown)
    return findings_bank("WordNet", path, found, classes, max_words=max_words, relations=relations)
