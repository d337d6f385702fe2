import json
import logging
from pathlib import Path

import pytest

from cbm.concepts import read_wordnet
from cbm.concepts.wordnet import WordNet
from cbm.errors import UserError

# name: words, {symbol: names}; some of the real hierarchy, in another order than it is read in
NOUNS = {
    "albatross": ("albatross mollymawk", {"@": "seabird"}),
    "crane": ("Crane", {"@": "entity"}),  # a writer
    "crane2": ("crane", {"@": "machine"}),
    "crane3": ("crane", {"@": "bird"}),
    "machine": ("machine", {"@": "device", "%p": "lever"}),
    "device": ("device", {"@": "artifact"}),
    "lever": ("lever", {"@": "device"}),
    "artifact": ("artifact artefact", {"@": "object"}),
    "seabird": ("seabird sea_bird", {"@": "bird"}),
    "bird": ("bird", {"@": "vertebrate", "%p": "beak wing feather", "%m": "flock"}),
    "vertebrate": ("vertebrate craniate", {"@": "animal", "%p": "tail"}),
    "animal": ("animal", {"@": "organism loop"}),
    "loop": ("loop", {"@": "animal"}),  # a cycle, as version 2 has one
    "organism": ("organism", {"@": "thing"}),
    "thing": ("living_thing", {"@": "whole"}),
    "whole": ("whole", {"@": "object"}),
    "object": ("object", {"@": "physical"}),
    "physical": ("physical_entity", {"@": "entity"}),
    "entity": ("entity", {}),
    "beak": ("beak bill neb", {"@": "entity"}),
    "wing": ("wing", {"@": "entity", "%s": "bone"}),
    "feather": ("feather plume", {"@": "entity", "%s": "horny_stuff"}),
    "tail": ("tail", {"@": "entity"}),
    "bone": ("bone", {"@": "entity"}),
    "horny_stuff": ("a_very_hard_keratin", {"@": "entity"}),
    "flock": ("flock", {"@": "entity"}),
    "ice": ("black-footed_ice", {"@i": "bird", "%s": "water", "+": "ice_v"}),
    "water": ("water", {"@": "entity"}),
}
LICENCE = "  1 This software and database is being provided to you, the LICENSEE.  \n  2   \n"
SENSES = {"crane": ["crane2", "crane", "crane3"]}


@pytest.fixture
def dict_folder(tmp_path: Path) -> Path:
    """``index.noun`` and ``data.noun`` with true byte offsets; accents make characters and bytes differ."""
    folder = tmp_path / "WordNet-3.0" / "dict"
    folder.mkdir(parents=True)
    offsets = dict.fromkeys(NOUNS, 0)
    for _ in range(2):  # offsets have eight digits whatever they are: the second round knows them
        content = LICENCE.encode()
        for name, (words, pointers) in NOUNS.items():
            offsets[name] = len(content)
            forms = words.split()
            links = [(symbol, offsets.get(to, 1234), "n" if to in NOUNS else "v") for symbol, names in pointers.items()
                     for to in names.split()]  # fmt: skip
            line = f"{offsets[name]:08d} 05 n {len(forms):02x} " + "".join(f"{form} 0 " for form in forms)
            line += f"{len(links):03d} " + "".join(f"{s} {to:08d} {pos} 0000 " for s, to, pos in links)
            content += (line + '| a gloss, perhaps with | a bar; "à la carte"  \n').encode()
    (folder / "data.noun").write_bytes(content)
    senses: dict[str, list[str]] = {}
    for name, (words, _) in NOUNS.items():
        for form in words.split():
            senses.setdefault(form.lower(), []).append(name)
    senses |= SENSES
    lines = [
        f"{form} n {len(names)} 2 @ %p {len(names)} 0 " + " ".join(f"{offsets[name]:08d}" for name in names) + "  "
        for form, names in sorted(senses.items())
    ]
    (folder / "index.noun").write_text(LICENCE + "\n".join(lines) + "\n")
    return folder


def facts(bank) -> dict[str, tuple]:
    return {c.text: (c.classes, c.provenance["relation"], c.provenance["steps"]) for c in bank.concepts}


def test_what_classes_are_and_have(dict_folder: Path):
    bank = read_wordnet(dict_folder, ["001.Laysan_Albatross", "crane"], superclass="bird")
    both = ("001.Laysan_Albatross", "crane")
    assert facts(bank) == {
        "animal": (both, "hypernym", 3),
        "beak": (both, "part", 1),
        "bird": (both, "hypernym", 1),
        "feather": (both, "part", 1),
        "loop": (both, "hypernym", 4),
        "seabird": (both[:1], "hypernym", 1),
        "tail": (both, "part", 2),
        "vertebrate": (both, "hypernym", 2),
        "wing": (both, "part", 1),
    }
    assert bank.concepts[0].provenance["source"] == str(dict_folder)
    gone = {dropped.text: dropped.reason for dropped in bank.dropped}
    assert gone.keys() == {"organism", "living thing", "whole", "object", "physical entity", "entity"}
    assert set(gone.values()) == {"too near the root to say much"}


def test_substances_are_inherited_and_long_phrases_left_out(dict_folder: Path):
    bank = read_wordnet(dict_folder, ["wing", "feather", "black_footed_ice"])
    assert facts(bank)["bone"] == (("wing",), "substance", 0)
    assert facts(bank)["water"] == (("black_footed_ice",), "substance", 0)
    assert facts(bank)["beak"] == (("black_footed_ice",), "part", 1)  # of an instance
    gone = {dropped.text: dropped.reason for dropped in bank.dropped}
    assert gone["a very hard keratin"] == "longer than 2 words"
    assert gone["wing"] == "names the class 'wing'"
    assert facts(read_wordnet(dict_folder, ["wing"], relations=("substance",))).keys() == {"bone"}


def test_names(dict_folder: Path, caplog: pytest.LogCaptureFixture):
    nouns = WordNet(dict_folder.parent)
    bird = nouns.find("bird")
    assert bird is not None
    assert nouns.find(bird.id) == bird
    assert nouns.find("n00000001") is None
    assert nouns.find(f"n{bird.offset + 1:08d}") is None
    machine, writer, crane = (nouns.find(f"crane.n.0{i}") for i in (1, 2, 3))
    assert nouns.find("crane") == nouns.find("Crane", "machine") == machine
    assert nouns.find("crane", "bird") == nouns.find("Whooping crane", "bird") == crane
    assert writer is not None
    assert writer.words == ("Crane",)
    assert nouns.find("crane.n.04") is nouns.find("crane", "fish") is nouns.find("zebra") is None
    assert nouns.find("sea bird") == nouns.find("SEABIRD")
    assert nouns.depth(bird) == 8
    with caplog.at_level(logging.WARNING, "cbm"):
        read_wordnet(dict_folder, ["whooping_crane", "Sea-bird", "bird", "zebra"], superclass="bird")
    assert "WordNet knows 1 classes by their last words only: 'whooping_crane' (crane)" in caplog.text
    assert "WordNet has none for 1 of 4 classes: 'zebra'" in caplog.text


def test_kin_is_what_a_class_is_or_a_kind_of_it(dict_folder: Path):
    nouns = WordNet(dict_folder)
    bird, crane = nouns.find("bird"), nouns.find("crane", "bird")
    assert bird
    assert crane
    assert nouns.are_kin("white seabird", bird)  # a kind
    assert nouns.are_kin("large animal", bird)  # what it is
    assert nouns.are_kin("bird", crane)
    assert not nouns.are_kin("seabird", crane)
    assert not nouns.are_kin("yellow beak", bird)
    assert not nouns.are_kin("blorf", bird)


def test_bad_input(dict_folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match="no 'index.noun' in .*expected the folder 'dict' of a WordNet distribution"):
        read_wordnet(tmp_path, ["bird"])
    with pytest.raises(UserError, match="unknown relation 'parts' of WordNet: did you mean 'part'"):
        read_wordnet(dict_folder, ["bird"], relations=("parts",))
    with pytest.raises(UserError, match="no concept for any class: looked for hypernym, part, substance of 'zebra'"):
        read_wordnet(dict_folder, ["zebra"])
    data, index = dict_folder / "data.noun", dict_folder / "index.noun"
    whole = data.read_bytes()
    data.write_bytes(whole.replace(b"n 01 bird", b"n zz bird"))
    with pytest.raises(UserError, match="data.noun' at byte .* is no synset"):
        read_wordnet(dict_folder, ["bird"])
    data.write_bytes(whole[: len(whole) // 2])  # cut: what is lost is lost, what is there is read
    assert WordNet(dict_folder).find("water") is None
    index.write_text(index.read_text() + "yak n 2 0 2 0 00000000\n")
    with pytest.raises(UserError, match="index.noun' line .* is no entry of WordNet's index of nouns: 'yak n 2"):
        WordNet(dict_folder)


def test_command(module, dict_folder: Path, tmp_path: Path):
    (tmp_path / "names.txt").write_text("crane\nlaysan albatross\nyak\n")
    arguments = (str(dict_folder), "--classes", "names.txt", "--superclass", "bird", "--out", "bank.json")
    status, output, _ = module("concepts", "wordnet", *arguments)
    assert status == 0
    assert "9 concepts in bank.json; left out: 6 too near the root" in " ".join(output.split())
    written = json.loads((tmp_path / "bank.json").read_text())
    assert {name: len(phrases) for name, phrases in written.items()} == {"crane": 8, "laysan albatross": 9, "yak": 0}
    assert "seabird" in written["laysan albatross"]
