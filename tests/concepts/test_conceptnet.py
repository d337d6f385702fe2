import gzip
import json
import logging
import random
from pathlib import Path

import pytest

from cbm.concepts import ConceptBank, read_bank, read_conceptnet
from cbm.errors import UserError

CLASSES = ["polar_bear", "001.Black_footed_Albatross", "bird"]
EDGES = [
    ("HasA", "polar_bear", "white_fur", 2.0),
    ("HasA", "polar_bear", "four_legs", 1.0),
    ("HasProperty", "polar_bear/n", "white", 1.0),
    ("IsA", "polar_bear/n/wn/animal", "bear/n", 2.0),
    ("IsA", "polar_bear", "large_mammal", 1.0),
    ("IsA", "polar_bear", "a_sea_animal", 3.0),
    ("PartOf", "paw", "polar_bear", 1.0),
    ("PartOf", "polar_bear", "arctic", 1.0),
    ("RelatedTo", "polar_bear", "ice", 5.0),
    ("HasA", "black_footed_albatross", "wings", 1.0),
    ("HasA", "bird", "wing", 1.0),
    ("PartOf", "wing/n", "bird/n", 4.0),
    ("HasA", "bird", "a_beak_for_eating_seeds", 1.0),
    ("IsA", "black_footed_albatross", "bird", 4.0),
    ("IsA", "bird", "polar_bears", 2.0),
    ("HasProperty", "bird", "banana_yellow", 1.0),
    ("MadeOf", "bird", "the_feathers", 1.0),
    ("HasA", "sparrow", "brown_feathers", 1.0),
]


def line(relation: str, start: str, end: str, weight: float, language: str = "en") -> str:
    start, end = f"/c/{language}/{start}", f"/c/{language}/{end}"
    details = {"dataset": "/d/conceptnet/4/en", "license": "cc:by/4.0", "surfaceText": "[[a\tb]]", "weight": weight}
    return f"/a/[/r/{relation}/,{start}/,{end}/]\t/r/{relation}\t{start}\t{end}\t{json.dumps(details)}\n"


def node(term: str, label: str | None = None, language: str = "en") -> dict:
    return {"@id": f"/c/{language}/{term}", "@type": "Node", "label": label or term.replace("_", " "),
            "language": language, "term": f"/c/{language}/{term.split('/')[0]}"}  # fmt: skip


def answer(edges: list[dict], **view: str) -> str:
    return json.dumps({"@id": "/c/en/x", "edges": edges, **({"view": view} if view else {})})


def edge(relation: str, start: dict, end: dict, weight: float = 1.0) -> dict:
    return {"@id": "/a/...", "rel": {"@id": f"/r/{relation}", "label": relation}, "start": start, "end": end,
            "weight": weight}  # fmt: skip


@pytest.fixture
def table(tmp_path: Path) -> Path:
    file = tmp_path / "conceptnet-assertions-5.7.0.csv"
    german = [line("HasA", "polar_bear", "kopf", 9.0, "de"), line("HasA", "bird", "schnabel", 9.0, "de")]
    file.write_text("".join([line(*e) for e in EDGES] + german))
    return file


def facts(bank: ConceptBank) -> list[tuple]:
    return [(c.text, c.classes, c.provenance["relation"], c.provenance["weight"]) for c in bank.concepts]


def gone(bank: ConceptBank) -> dict[str, str]:
    return {dropped.text: dropped.reason for dropped in bank.dropped}


def test_the_table(table: Path):
    bank = read_conceptnet(table, CLASSES)
    albatross = "001.Black_footed_Albatross"
    assert facts(bank) == [
        ("bear", ("polar_bear",), "IsA", 2.0),
        ("four legs", ("polar_bear",), "HasA", 1.0),
        ("paw", ("polar_bear",), "PartOf", 1.0),
        ("sea animal", ("polar_bear",), "IsA", 3.0),
        ("white", ("polar_bear",), "HasProperty", 1.0),
        ("white fur", ("polar_bear",), "HasA", 2.0),
        ("wing", (albatross, "bird"), "PartOf", 4.0),
        ("banana yellow", ("bird",), "HasProperty", 1.0),
        ("feathers", ("bird",), "MadeOf", 1.0),
    ]
    assert bank.concepts[6].provenance["merged"] == ["wings"]
    assert bank.source == str(table)
    assert gone(bank) == {
        "large mammal": "IsA of weight 1 or less",
        "bird": "names the class 'bird'",
        "polar bears": "names the class 'polar_bear'",
        "beak for eating seeds": "longer than 2 words",
    }


def test_zipped_is_the_same(table: Path):
    zipped = table.with_suffix(".csv.gz")
    zipped.write_bytes(gzip.compress(table.read_bytes()))
    assert facts(read_conceptnet(zipped, CLASSES, progress=True)) == facts(read_conceptnet(table, CLASSES))


def test_order_of_the_lines_does_not_matter(table: Path):
    bank = read_conceptnet(table, CLASSES)
    lines = table.read_text().splitlines(keepends=True)
    for seed in range(5):
        random.Random(seed).shuffle(lines)
        table.write_text("".join(lines))
        again = read_conceptnet(table, CLASSES)
        assert again.concepts == bank.concepts
        assert again.dropped == bank.dropped
    assert [c.text for c in read_conceptnet(table, CLASSES[::-1]).concepts][:2] == ["banana yellow", "feathers"]


def test_only_concepts_one_edge_away(tmp_path: Path):
    """What a tail has is two edges from the cat: the original, told to follow those, lost the tail."""
    file = tmp_path / "a.csv"
    file.write_text(line("HasA", "cat", "tail", 1.0) + line("HasA", "tail", "tip", 1.0))
    assert read_conceptnet(file, ["cat"]).texts == ["tail"]


@pytest.mark.parametrize(
    ("label", "phrase"),
    [
        ("a sea animal", "sea animal"),
        ("A_Sea_Animal", "sea animal"),
        ("banana peel", "banana peel"),
        ("panda", "panda"),
        ("an antenna", "antenna"),
        ("the tail", "tail"),
        ("theatre", "theatre"),
        ("anvil", "anvil"),
        ("T-shirt", "t-shirt"),
        ("  four   legs ", "four legs"),
        ("vitamin A", "vitamin a"),
    ],
)
def test_articles_are_words(tmp_path: Path, label: str, phrase: str):
    file = tmp_path / "answer.json"
    file.write_text(answer([edge("HasA", node("cat", "a cat"), node("x", label))]))
    assert read_conceptnet(file, ["cat"]).texts == [phrase]


@pytest.mark.parametrize(
    ("phrases", "kept"),
    [
        (["wing", "wings"], ["wing"]),
        (["wings"], ["wings"]),
        (["body", "bodies"], ["body"]),
        (["leaf", "leaves"], ["leaf"]),
        (["box", "boxes"], ["box"]),
        (["eye", "eyes"], ["eye"]),
        (["tooth", "teeth"], ["tooth"]),
        (["sharp_claw", "sharp_claws"], ["sharp claw"]),
        (["glas", "glass"], ["glas", "glass"]),
        (["ga", "gas"], ["ga", "gas"]),
        (["cats"], []),
        (["polar_bears", "a_cat", "polar_bear"], []),
        (["Cat_food"], ["cat food"]),
    ],
)
def test_plurals_and_class_names(tmp_path: Path, phrases: list[str], kept: list[str]):
    file = tmp_path / "a.csv"
    file.write_text("".join(line("HasA", "cat", p, 1.0) for p in phrases) + line("HasA", "polar_bear", "zzz", 1.0))
    bank = read_conceptnet(file, ["cat", "polar_bear"])
    assert bank.texts == [*kept, "zzz"]
    assert all("names the class" in reason for reason in gone(bank).values())


def test_owners_of_a_plural_go_to_its_singular(tmp_path: Path):
    file = tmp_path / "a.csv"
    file.write_text(line("HasA", "cat", "claws", 9.0) + line("HasA", "bird", "claw", 1.0))
    assert facts(read_conceptnet(file, ["cat", "bird"])) == [("claw", ("cat", "bird"), "HasA", 1.0)]


def test_settings(table: Path):
    assert read_conceptnet(table, CLASSES, relations=("MadeOf",)).texts == ["feathers"]
    assert "beak for eating seeds" in read_conceptnet(table, CLASSES, max_words=4).texts
    assert read_conceptnet(table, CLASSES, max_words=1).texts == ["bear", "paw", "white", "wing", "feathers"]
    with pytest.raises(UserError, match="unknown relation 'HasAn' of ConceptNet: did you mean 'HasA'"):
        read_conceptnet(table, CLASSES, relations=("HasAn",))


def test_answers_of_the_web_service(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    cat = node("cat/n", "a cat")
    first = [edge("HasA", cat, node("tail", "a tail")), edge("IsA", cat, node("feline"), 2.0)]
    first += [edge("HasA", cat, node("queue", language="fr")), edge("Synonym", cat, node("kitty"))]
    second = [edge("PartOf", node("whisker", "Whiskers"), cat), edge("IsA", cat, node("pet"), 1.0)]
    here, there = "/c/en/cat?offset=0&limit=20", "/c/en/cat?offset=20&limit=20"
    (tmp_path / "cat.json").write_text(answer(first, **{"@id": here, "nextPage": there}))
    with caplog.at_level(logging.WARNING, "cbm.concepts.conceptnet"):
        assert read_conceptnet(tmp_path / "cat.json", ["cat"]).texts == ["feline", "tail"]
    assert "1 of 1 answers of ConceptNet go on in a next page that is not there, first 'cat.json'" in caplog.text
    caplog.clear()
    (tmp_path / "cat2.json").write_text(answer(second, **{"@id": there}))
    with caplog.at_level(logging.WARNING, "cbm.concepts.conceptnet"):
        bank = read_conceptnet(tmp_path, ["cat"])
    assert bank.texts == ["feline", "tail", "whiskers"]
    assert gone(bank) == {"pet": "IsA of weight 1 or less"}
    assert not caplog.text


def test_classes_without_concepts(table: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "cbm.concepts.conceptnet"):
        assert read_conceptnet(table, [*CLASSES, "zebra", "yak"]).classes == CLASSES
    assert "none for 2 of 5 classes: 'zebra', 'yak'" in caplog.text
    with pytest.raises(UserError, match="no concept for any class: looked for HasA, .*PartOf of 'zebra', 'yak'$"):
        read_conceptnet(table, ["zebra", "yak"])
    table.write_text(line(*EDGES[12]))
    with pytest.raises(UserError, match=r"of 'bird'; left out 1, first: 'beak for eating seeds' \(longer than 2 words"):
        read_conceptnet(table, ["bird"])


def test_damaged_files(tmp_path: Path, table: Path):
    zipped = tmp_path / "cut.csv.gz"
    content = gzip.compress(random.Random(0).randbytes(50_000) + table.read_bytes())
    zipped.write_bytes(gzip.compress(table.read_bytes())[:-20])
    with pytest.raises(UserError, match="cut.csv.gz' is damaged .*download it again"):
        read_conceptnet(zipped, CLASSES)
    zipped.write_bytes(content[:20_000] + b"0" * 2000 + content[22_000:])
    with pytest.raises(UserError, match="is damaged|is not ConceptNet's table"):
        read_conceptnet(zipped, CLASSES)
    with pytest.raises(UserError, match="no ConceptNet data .* did you mean 'cut.csv.gz'"):
        read_conceptnet(tmp_path / "cut.csv", CLASSES)
    table.write_text("")
    with pytest.raises(UserError, match="is not ConceptNet's table of assertions"):
        read_conceptnet(table, CLASSES)
    table.write_text("path,label\na.jpg,cat\n")
    with pytest.raises(UserError, match="line 1 begins with 'path,label"):
        read_conceptnet(table, CLASSES)
    table.write_text(line(*EDGES[0]) + line(*EDGES[1]).split("{")[0] + "{}\n")
    with pytest.raises(UserError, match="line 2: no weight in '{}'"):
        read_conceptnet(table, CLASSES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<html>502 Bad Gateway</html>", "answer.json' is not JSON"),
        ('{"error": {"status": 500}}', "it has no list 'edges'"),
        ("[]", "it has no list 'edges'"),
        ('{"edges": [{"rel": "IsA"}]}', "edge 1 has no start, end, rel and weight"),
        ('{"edges": []}', "no concept for any class"),
    ],
)
def test_answers_that_are_none(tmp_path: Path, content: str, message: str):
    with pytest.raises(UserError, match="has no JSON files"):
        read_conceptnet(tmp_path, ["cat"])
    (tmp_path / "answer.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_conceptnet(tmp_path, ["cat"])


@pytest.fixture
def module(module):
    """``python -m cbm concepts conceptnet``."""
    return lambda *arguments: module("concepts", "conceptnet", *arguments)


def test_command_with_class_names(module, table: Path, tmp_path: Path):
    (tmp_path / "names.txt").write_text("polar_bear\n\nbird\nyak\n")
    status, output, errors = module(str(table), "--classes", "names.txt", "--out", "new/bank.json")
    assert status == 0
    assert "none for 1 of 3 classes: 'yak'" in errors
    assert "9 concepts in new/bank.json" in output
    assert "1 longer than 2 words" in output
    assert "1 names the class" in output
    assert "1 IsA of weight 1 or less" in output
    assert "polar_bear" in output
    written = json.loads((tmp_path / "new" / "bank.json").read_text())
    assert list(written) == ["polar_bear", "bird", "yak"]
    assert written["bird"] == ["banana yellow", "feathers", "wing"]
    assert written["yak"] == []
    bank = read_bank(tmp_path / "new" / "bank.json")
    assert bank.texts == read_conceptnet(table, ["polar_bear", "bird"]).texts
    before = (tmp_path / "new" / "bank.json").read_bytes()
    status, _, errors = module(str(table), "--classes", "names.txt", "--out", "new/bank.json")
    assert status == 2
    assert errors.endswith("\nerror: 'new/bank.json' is there already: remove it or choose another --out\n")
    assert (tmp_path / "new" / "bank.json").read_bytes() == before


def test_command_with_a_data_set(module, colour_folder: Path, tmp_path: Path):
    (tmp_path / "a.csv").write_text(line("HasProperty", "red", "warm", 1.0) + line("HasProperty", "blue", "cold", 1.0))
    status, _, errors = module("a.csv", "--dataset", "folder", "--root", str(colour_folder), "--out", "o.json")
    assert status == 0
    assert "'green'" in errors
    assert json.loads((tmp_path / "o.json").read_text()) == {"blue": ["cold"], "green": [], "red": ["warm"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say either --dataset CARD or --classes NAMES.txt"),
        (["--dataset", "birds", "--classes", "names.txt"], "say either --dataset CARD or --classes"),
        (["--dataset", "bird"], "unknown dataset 'bird': did you mean 'birds'"),
        (["--classes", "none.txt"], "cannot read class names from 'none.txt'"),
        (["--classes", "empty.txt"], "'empty.txt' has no class names"),
        (["--classes", "names.txt"], "no ConceptNet data 'assertions.csv'"),
    ],
)
def test_command_with_bad_input(module, tmp_path: Path, arguments: list[str], message: str):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "names.txt").write_text("cat\n")
    status, _, errors = module("assertions.csv", "--out", "o.json", *arguments)
    assert status == 2
    assert message in errors
    assert not (tmp_path / "o.json").exists()
