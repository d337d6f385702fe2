"""Every kind of file that cbm reads, small and valid, with the function that reads it."""

import csv
import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import yaml
from PIL import Image
from trust.readable import Readable, dataset, picture, tree
from trust.readable_arrays import ARRAYS
from trust.readable_pictures import PICTURES
from trust.readable_runs import RUNS

from cbm import config
from cbm.concepts import Concept, ConceptBank, load_bank, read_bank
from cbm.concepts.conceptnet import _edges
from cbm.concepts.detections import read_detections
from cbm.concepts.llm.answers import Unparsable, parse_answer, read_plain, salvage
from cbm.concepts.llm.prompts import load_family
from cbm.concepts.vocabulary import _seed_words
from cbm.concepts.wordnet import WordNet
from cbm.data import FeatureData, FeatureSplit, read_dataset
from cbm.data.chest import CHEXPERT, NIH
from cbm.data.images import ImageFiles
from cbm.data.pascal import THINGS
from cbm.data.shards import peek, read_shard, write_shard
from cbm.data.skin import CRITERIA
from cbm.data.splits import complete_splits
from cbm.data.webdataset import open_tars
from cbm.editing import load_edits, load_gate, load_source_card
from cbm.editing.domains.gate import Gate
from cbm.editing.domains.source_card import SourceCard
from cbm.files.dictionaries import Dictionary, read_dictionary, write_dictionary
from cbm.files.run_directory import _state, read_about, read_config, read_metrics, verify_run
from cbm.layers import ConceptBottleneck, LinearHead, load_model, save_model
from cbm.metrics.nec import SparseHead, load_heads, save_heads
from cbm.run.audit import load_audit
from cbm.run.intervene import read_answers
from cbm.trained.model import open_image
from cbm.training.fit import is_sound


def matlab(**variables) -> bytes:
    from scipy.io import savemat

    buffer = io.BytesIO()
    savemat(buffer, variables)
    return buffer.getvalue()


def tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def save_bank(root: Path) -> None:
    concepts = (Concept("red belly", ("crow",), "belly", 0.5, {"source": "x"}), Concept("long tail", ("crow", "owl")))
    ConceptBank("b", "s", concepts, "encoder", torch.eye(2, 4)).save(root)


ENCODER = {"id": "e", "fingerprint": "f", "dim": 4, "logit_scale": 100.0}


def save_run(root: Path) -> None:
    """The text files of a finished run, unsigned."""
    tree(**{
        "config.yaml": "seed: 0\nmethod:\n  name: labo\n  lr: 1.0e-05\ndataset:\n  name: birds\n  args: {}\n",
        "metrics.json": json.dumps({"test/accuracy": 0.5, "time/fit_s": 1.0}),
        "about.json": json.dumps({"classes": ["a", "b"], "encoder": ENCODER}),
        "state.json": json.dumps({"settings": "0", "finished": True, "checksums": {"metrics.json": "0"}}),
    })(root)  # fmt: skip


def read_run(root: Path) -> None:
    read_config(root), read_metrics(root), read_about(root)


def state_of(root: Path) -> None:
    assert _state(root, "0") in ("finished", "interrupted", "other")
    verify_run(root, ("about.json",))


def save_checkpoint(root: Path) -> None:
    torch.save({"cbm": {"best": {"loss": 1.0}}, "state_dict": {"w": torch.arange(6.0)}}, root / "last.ckpt")


LINEAR = {"W_enc": torch.eye(3, 4), "W_dec": torch.eye(4, 3), "b_enc": torch.zeros(4), "b_dec": torch.zeros(3)}


def save_saev(file: Path) -> None:
    activation = {"cls": "TopK", "params": {"top_k": 2}}
    with file.open("wb") as opened:
        opened.write(json.dumps({"schema": 5, "cfg": {"d_model": 3, "activation": activation}}).encode() + b"\n")
        torch.save(LINEAR, opened)


def save_saelens(root: Path) -> None:
    safetensors.torch.save_file(LINEAR, root / "sae_weights.safetensors")
    about = {"architecture": "topk", "d_in": 3, "d_sae": 4, "k": 2, "activation_fn_kwargs": {"k": 2}}
    (root / "cfg.json").write_text(json.dumps(about))


def drawn_splits(root: Path) -> None:
    for number in range(8):
        tree(**{f"pictures/{'ab'[number % 2]}/{number}.png": picture()})(root)
    draw_splits(root)
    (root / next((root / "splits").iterdir())).rename(root / "splits" / "kept.json")


def draw_splits(root: Path) -> None:
    pictures = read_dataset("folder", "f", root / "pictures", {})
    kept = root / "splits" / "kept.json"
    if kept.is_file():  # its name says where the pictures are
        for file in (root / "splits").glob("f-*"):
            file.unlink()
        import hashlib

        key = f"f|{(root / 'pictures').absolute()}|{sorted({'test': 0.3, 'val': 0.3}.items())}|0"
        name = f"f-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"
        (root / "splits" / name).write_bytes(kept.read_bytes())
    complete_splits(pictures, root, val_fraction=0.3, test_fraction=0.3, seed=0)


def read_fingerprints(root: Path) -> None:
    found = ImageFiles(root, ["a.png"]).fingerprints(root)
    assert len(found) == 1


def read_card(root: Path) -> None:
    before, config.CARDS = config.CARDS, root
    try:
        config.load_card("mine")
        config.about_card("mine")
    finally:
        config.CARDS = before


def language_model_said(root: Path) -> None:
    text = (root / "answer.txt").read_bytes().decode(errors="replace")
    for kind in ("concepts", "groups", "split"):
        try:
            parse_answer(text, kind)
        except Unparsable:
            salvage(text, kind)
            read_plain(text, kind)


def wordnet(root: Path) -> None:
    words = WordNet(root)
    for name in ("bird", "n00000000", "bird.n.01"):
        if synset := words.find(name, "animal"):
            list(words.hypernyms(synset))


BANK = ConceptBank("b", "s", (Concept("red"), Concept("blue")))
PICTURES_OF_DETECTIONS = FeatureData(
    {"train": FeatureSplit(torch.ones(2, 2), torch.tensor([0, 1]), ["a.png", "b.png"])}, ["a", "b"]
)
PNG = picture()
CELEBA = "2\nSmiling Young\n" + "".join(f"{n}.jpg {1 if n % 2 else -1} {1 if n % 3 else -1}\n" for n in range(8))
COOP = {
    split: [[f"a/{n}.png", 0, "a"], [f"b/{n}.png", 1, "b"]] for n, split in enumerate(("train", "val", "test"))
}  # fmt: skip
SKIN_META = io.StringIO()
_writer = csv.DictWriter(SKIN_META, ["diagnosis", "derm", *CRITERIA], lineterminator="\n")
_writer.writeheader()
for _n, _said in enumerate(("clark nevus", "melanoma")):
    _writer.writerow({"diagnosis": _said, "derm": f"{_n}.jpg", **{key: values[0] for key, values in CRITERIA.items()}})
_EDGE = {
    "rel": {"@id": "/r/HasA"}, "start": {"@id": "/c/en/bird", "label": "bird"},
    "end": {"@id": "/c/en/wing/n", "label": "a wing"}, "weight": 2.0,
}  # fmt: skip
_EDGES = b'/a/x\t/r/HasA\t/c/en/bird\t/c/en/wing\t{"weight": 1.0}\n' * 3
_MASK = Image.new("L", (6, 6), 255)
_CELLS = range(1, 41)
_MASKED = io.BytesIO()
_MASK.save(_MASKED, "PNG")
_ENTITY = "00000000 05 n 01 bird 0 001 @ 00000057 n 0000 | a flying animal  \n"
_ABOVE = f"{len(_ENTITY):08d} 05 n 01 animal 0 000 | it lives  \n"
_ENTITY = _ENTITY.replace("00000057", f"{len(_ENTITY):08d}")

READABLE: dict[str, Readable] = {
    "csv": dataset(
        "csv",
        {
            "images.csv": "path,label,split,spurious,red,blue\na.png,x,train,red; blue,1,0\nb.png,y,test,,0,\n"
            "b.png,y,train,,0,\n",
            "groups.json": '{"colour": ["red", "blue"]}', "a.png": PNG, "b.png": PNG,
        },
        ("images.csv", "groups.json"),
    ),
    "csv of labels": dataset(
        "csv",
        {
            "images.csv": "path,split,Edema,shape,stage,size,site,who\na.png,train,1,round,2,3.5,A,P\n"
            "b.png,train,0,long,1,,B,Q\nc.png,train,-1,round,3,7,A,R\nd.png,train,1,long,,1,,S\ne.png,train,0,,1,1,,T\n",
            "columns.yaml": 'labels: [Edema]\ncells: {"-1": unknown}\nconcepts:\n  shape: {values: [round, long]}\n'
            "  stage: {ordered: [1, 2, 3]}\n  size: {unit: mm, range: [0, 9]}\ngroups: [site]\nsubject: who\n",
        }
        | {f"{letter}.png": PNG for letter in "abcde"},
        ("images.csv", "columns.yaml"),
    ),
    "csv of findings": dataset(
        "csv",
        {
            "images.csv": "path,findings\na.png,A|B\nb.png,none\nc.png,A\nd.png,B\n",
            "columns.yaml": "labels: {column: findings, separator: '|', none: none}\n",
        }
        | {f"{letter}.png": PNG for letter in "abcd"},
        ("images.csv", "columns.yaml"),
    ),
    "cub": dataset(
        "cub",
        {
            "images.txt": "1 a/1.jpg\n2 b/2.jpg\n3 a/3.jpg\n", "classes.txt": "1 001.a\n2 002.b\n",
            "image_class_labels.txt": "1 1\n2 2\n3 1\n", "train_test_split.txt": "1 1\n2 1\n3 0\n",
            "attributes/attributes.txt": "1 has_wing::red\n2 has_wing::blue\n",
            "attributes/image_attribute_labels.txt": "1 1 1 3 1.0\n1 2 0 3 1.0\n2 1 0 1 1.0\n2 2 1 4 1.0\n3 1 1 4 1\n",
        },
        (
            "images.txt", "classes.txt", "image_class_labels.txt", "train_test_split.txt", "attributes/attributes.txt",
            "attributes/image_attribute_labels.txt",
        ),
        min_classes=1,
    ),
    "awa2": dataset(
        "awa2",
        {
            "classes.txt": "1 a\n2 b\n", "predicates.txt": "1 black\n2 white\n",
            "predicate-matrix-binary.txt": "0 1\n1 0\n", "JPEGImages/a/1.jpg": "", "JPEGImages/b/1.jpg": "",
        },
        ("classes.txt", "predicates.txt", "predicate-matrix-binary.txt"),
    ),
    "celeba": dataset(
        "celeba",
        {
            "list_attr_celeba.txt": CELEBA,
            "list_eval_partition.txt": "".join(f"{n}.jpg {n // 6}\n" for n in range(8)),
        },
        ("list_attr_celeba.txt", "list_eval_partition.txt"), concepts=1, hidden=1, every=1,
    ),
    "celeba attributes": dataset(
        "celeba",
        {
            "list_attr_celeba.txt": CELEBA,
            "list_eval_partition.txt": "".join(f"{n}.jpg {n // 6}\n" for n in range(8)),
        },
        ("list_attr_celeba.txt", "list_eval_partition.txt"), task="attributes", every=1,
    ),
    "chexpert": dataset(
        "chexpert",
        {
            f"{table}.csv": "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(CHEXPERT) + "\n"
            + "".join(
                f"CheXpert-v1.0-small/{table}/patient{n}/study1/view1_frontal.jpg,Male,9,Frontal,AP,"
                + ",".join(["1.0", "0.0", "1.0", "0.0", "-1.0", ""][(n + k) % 4] for k in range(14)) + "\n"
                for n in range(8)
            )
            for table in ("train", "valid")
        }
        | {f"{t}/patient{n}/study1/view1_frontal.jpg": "" for t in ("train", "valid") for n in range(8)},
        ("train.csv", "valid.csv"), blank="absent",
    ),
    "nih14": dataset(
        "nih14",
        {
            "Data_Entry_2017.csv": "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,"
            "View Position,OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
            + "".join(
                f"{n}.png,{'|'.join(NIH) if n % 2 else 'No Finding'},0,{n},58,M,PA,1,1,0.1,0.1,\n" for n in range(8)
            ),
            "train_val_list.txt": "0.png\n1.png\n2.png\n3.png\n4.png\n5.png\n", "test_list.txt": "6.png\n7.png\n",
        }
        | {f"images_001/images/{n}.png": PNG for n in range(8)},
        ("Data_Entry_2017.csv", "train_val_list.txt", "test_list.txt"),
    ),
    "voc": dataset(
        "voc",
        {
            f"ImageSets/Main/{thing}_{part}.txt": "".join(
                f"{n:06d} {mark}\n" for n, mark in enumerate((" 1", "-1", " 1", "-1", " 0"))
            )
            for thing in THINGS for part in ("train", "val", "test")
        }
        | {f"JPEGImages/{n:06d}.jpg": "" for n in range(5)},
        ("ImageSets/Main/dog_train.txt", "ImageSets/Main/aeroplane_test.txt"),
    ),
    "coop": dataset(
        "dtd",
        {"split_zhou_DescribableTextures.json": json.dumps(COOP)}
        | {f"images/{c}/{n}.png": "" for c in "ab" for n in range(3)},
        ("split_zhou_DescribableTextures.json",), protocol="coop",
    ),
    "dtd": dataset(
        "dtd",
        {f"labels/{split}1.txt": "a/0.jpg\nb/0.jpg\n" for split in ("train", "val", "test")}
        | {"images/a/0.jpg": "", "images/b/0.jpg": ""},
        ("labels/train1.txt", "labels/test1.txt"),
    ),
    "flowers102": dataset(
        "flowers102",
        {
            "imagelabels.mat": matlab(labels=np.array([[*range(1, 103), *range(1, 103)]])),
            "setid.mat": matlab(trnid=np.array([range(1, 103)]), valid=np.array([[103]]), tstid=np.array([[104]])),
        }
        | {f"jpg/image_{number:05d}.jpg": "" for number in range(1, 205)},
        ("imagelabels.mat", "setid.mat"),
    ),
    "food101": dataset(
        "food101",
        {
            "meta/classes.txt": "a\nb\n", "meta/train.txt": "a/1\nb/1\n", "meta/test.txt": "a/2\nb/2\n",
            "images/a/1.jpg": "", "images/a/2.jpg": "", "images/b/1.jpg": "", "images/b/2.jpg": "",
        },
        ("meta/classes.txt", "meta/train.txt"),
    ),
    "aircraft": dataset(
        "aircraft",
        {"variants.txt": "707-320\n727 200\n", "images/1.jpg": "", "images/2.jpg": ""}
        | {f"images_variant_{split}.txt": "1 707-320\n2 727 200\n" for split in ("train", "val", "test")},
        ("variants.txt", "images_variant_train.txt"),
    ),
    "ucf101": dataset(
        "ucf101",
        {"ucfTrainTestlist/classInd.txt": "1 ApplyLipstick\n2 Archery\n"}
        | {
            f"ucfTrainTestlist/{split}list01.txt": "ApplyLipstick/v_A_g01_c01.avi 1\nArchery/v_B_g01_c01.avi 2\n"
            for split in ("train", "test")
        }
        | {"UCF-101-midframes/Apply_Lipstick/v_A_g01_c01.jpg": "", "UCF-101-midframes/Archery/v_B_g01_c01.jpg": ""},
        ("ucfTrainTestlist/classInd.txt", "ucfTrainTestlist/trainlist01.txt"),
    ),
    "places365": dataset(
        "places365",
        {
            "categories_places365.txt": "/a/airfield 0\n/c/church/indoor 1\n",
            "places365_train_standard.txt": "/a/airfield/1.jpg 0\n/c/church/indoor/1.jpg 1\n",
            "places365_val.txt": "1.jpg 0\n2.jpg 1\n", "data_256_standard/a/airfield/1.jpg": "",
            "data_256_standard/c/church/indoor/1.jpg": "", "val_256/1.jpg": "", "val_256/2.jpg": "",
        },
        ("categories_places365.txt", "places365_train_standard.txt"),
    ),
    "imagenet-csv": dataset(
        "imagenet",
        {
            "LOC_val_solution.csv": "ImageId,PredictionString\nv1,n01440764 1 2 3 4\nv2,n01443537 1 2 3 4\n",
            "ILSVRC/Data/CLS-LOC/val/v1.JPEG": "", "ILSVRC/Data/CLS-LOC/val/v2.JPEG": "",
            "ILSVRC/Data/CLS-LOC/train/n01440764/1.JPEG": "", "ILSVRC/Data/CLS-LOC/train/n01443537/1.JPEG": "",
        },
        ("LOC_val_solution.csv",),
    ),
    "imagenet-devkit": dataset(
        "imagenet",
        {
            "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": "1\n2\n",
            "ILSVRC2012_devkit_t12/data/meta.mat": matlab(
                synsets=np.array([(1, "n01440764"), (2, "n01443537")], [("ILSVRC2012_ID", "O"), ("WNID", "O")])
            ),
            "val/1.JPEG": "", "val/2.JPEG": "", "train/n01440764/1.JPEG": "", "train/n01443537/1.JPEG": "",
        },
        (
            "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt",
            "ILSVRC2012_devkit_t12/data/meta.mat",
        ),
    ),
    "ham10000": dataset(
        "ham10000",
        {
            "HAM10000_metadata.csv": "lesion_id,image_id,dx\n"
            + "".join(f"H{n},I{n},{dx}\n" for n, dx in enumerate(("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"))),
        }
        | {f"HAM10000_images_part_1/I{n}.jpg": "" for n in range(7)},
        ("HAM10000_metadata.csv",),
    ),
    "skincon": dataset(
        "skincon",
        {
            "annotations_fitzpatrick17k.csv": ",ImageID,Papule,Do not consider this image\n0,a.jpg,1,0\n1,b.jpg,1,0\n",
            "fitzpatrick17k.csv": "md5hash,three_partition_label\na,benign\nb,malignant\n",
            "images/a.jpg": "", "images/b.jpg": "",
        },
        ("annotations_fitzpatrick17k.csv", "fitzpatrick17k.csv"), min_pictures=1,
    ),
    "derm7pt": dataset(
        "derm7pt",
        {
            "meta/meta.csv": SKIN_META.getvalue(), "images/0.jpg": "", "images/1.jpg": "",
            "meta/train_indexes.csv": "indexes\n0\n1\n", "meta/valid_indexes.csv": "indexes\n0\n",
            "meta/test_indexes.csv": "indexes\n1\n",
        },
        ("meta/meta.csv", "meta/train_indexes.csv"),
    ),
    "waterbirds": dataset(
        "waterbirds",
        {
            "metadata.csv": "img_id,img_filename,y,split,place\n"
            + "".join(f"{n},{n}.jpg,{n % 2},{n // 2},{n % 2}\n" for n in range(6)),
        }
        | {f"{n}.jpg": "" for n in range(6)},
        ("metadata.csv",),
    ),
    "wbc": dataset(
        "wbc",
        {"Class Labels of Dataset 1.csv": "image ID,class label\n" + "".join(f"{n},{n % 2 + 1}\n" for n in _CELLS)}
        | {f"Dataset 1/{n:03d}.{ending}": _MASKED.getvalue() for n in _CELLS for ending in ("bmp", "png")},
        ("Class Labels of Dataset 1.csv", "Dataset 1/001.png"),
    ),
    "wbcatt": dataset(
        "wbcatt",
        {
            f"pbc_attr_v1_{split}.csv": "img_name,label,path,size\na,Neutrophil,a.jpg,big\nb,Monocyte,b.jpg,small\n"
            for split in ("train", "val", "test")
        }
        | {"a.jpg": "", "b.jpg": ""},
        ("pbc_attr_v1_train.csv",),
    ),
    "webdataset": dataset(
        "webdataset",
        {
            "train-0.tar": tar({
                "a.png": PNG, "a.cls": b"0", "b.png": PNG, "b.json": b'{"label": 1}', "c.png": PNG, "c.txt": b"0",
            }),
            "classnames.txt": "crow\nowl\n",
        },
        ("train-0.tar", "classnames.txt"),
    ),
    "tar index": Readable(
        lambda root: (tree(**{"t.tar": tar({"a.png": PNG, "a.cls": b"x"})})(root), open_tars(root, ["t.tar"], root),
                      next((root / "tars").iterdir()).rename(root / "index.parquet"))[0],
        lambda root: _with_index(root),
        ("index.parquet",),
    ),
    "bank of a language model": Readable(
        tree(**{"b.json": '{"crow": ["black wings", ["a beak", 0.5]], "owl": ["black wings"]}'}),
        lambda root: read_bank(root / "b.json"), ("b.json",),
    ),
    "list of concepts": Readable(
        tree(**{"b.txt": "# ours\nred\nblue\n\nred\n"}), lambda root: read_bank(root / "b.txt"), ("b.txt",)
    ),
    "our bank": Readable(save_bank, load_bank, ("bank.json", "embeddings.safetensors")),
    "edits": Readable(
        tree(**{"edits.yaml": yaml.safe_dump([
            {"op": "set", "concept": "red", "value": 1.0, "classes": ["a"], "why": "so", "when": "2026-01-01"},
            {"op": "remove", "concept": "blue", "samples": ["a.png"], "domain": "there"},
        ])}),
        lambda root: _use_edits(root / "edits.yaml"), ("edits.yaml",),
    ),
    "edits with a record": Readable(
        tree(**{"edits.yaml": yaml.safe_dump({
            "record": {"run": "one", "model": "0f", "split": "birds/val", "pictures": 8, "before": 0.5, "after": 0.6},
            "edits": [{"op": "scale", "concept": "red", "value": 2.0}],
        })}),
        lambda root: _use_edits(root / "edits.yaml"), ("edits.yaml",),
    ),
    "audit list": Readable(
        tree(**{"audit.yaml": "- {concept: red, expect: wanted, classes: [a]}\n- {concept: sky, expect: neutral}\n"}),
        lambda root: load_audit(root / "audit.yaml", ["a", "b"]), ("audit.yaml",),
    ),
    "prompts": Readable(
        lambda root: (root / "f.yaml").write_bytes(
            next((config.SHIPPED / "concepts" / "prompts").glob("*.yaml")).read_bytes()
        ),
        lambda root: load_family(str(root / "f.yaml")), ("f.yaml",),
    ),
    "seed words": Readable(
        tree(**{"w.yaml": "adjective: {colour: [red, blue]}\nnoun: {part: [wing]}\n"}),
        lambda root: _seed_words(root / "w.yaml"), ("w.yaml",),
    ),
    "card": Readable(
        tree(**{"mine.yaml": "name: mine\nreader: csv\nroot: /pictures\nargs: {}\nabout: {title: Mine}\n"}),
        read_card, ("mine.yaml",),
    ),
    "conceptnet": Readable(
        tree(**{"c.csv": _EDGES}), lambda root: list(_edges(root / "c.csv", ("HasA",), False)), ("c.csv",)
    ),
    "conceptnet, packed": Readable(
        tree(**{"c.gz": gzip.compress(_EDGES)}), lambda root: list(_edges(root / "c.gz", ("HasA",), False)), ("c.gz",)
    ),
    "conceptnet's answers": Readable(
        tree(**{"c.json": json.dumps({"edges": [_EDGE], "view": {"@id": "/x", "nextPage": "/y"}})}),
        lambda root: list(_edges(root / "c.json", ("HasA",), False)), ("c.json",),
    ),
    "wordnet": Readable(
        tree(**{
            "data.noun": _ENTITY + _ABOVE,
            "index.noun": f"bird n 1 1 @ 1 0 00000000  \nanimal n 1 0 1 0 {len(_ENTITY):08d}  \n",
        }),
        wordnet, ("data.noun", "index.noun"),
    ),
    "answers of an expert": Readable(
        tree(**{"a.csv": "picture,red,blue\na.png,1,0\nb.png,,1\n"}),
        lambda root: read_answers(root / "a.csv", ["a.png", "b.png"], BANK), ("a.csv",),
    ),
    "detections": Readable(
        tree(**{"d.csv": "path,concept,score,x0,y0,x1,y1,asked\na.png,red,.9,0,0,.5,1,1\nb.png,blue,,,,,,1\n"}),
        lambda root: read_detections(root / "d.csv", BANK, PICTURES_OF_DETECTIONS), ("d.csv",),
    ),
    "answer of a language model": Readable(
        tree(**{"answer.txt": '{"concepts": ["red belly", "long tail"]}'}), language_model_said, ("answer.txt",)
    ),
    "run": Readable(save_run, read_run, ("config.yaml", "metrics.json", "about.json")),
    "state of a run": Readable(save_run, state_of, ("state.json",)),
    "splits": Readable(drawn_splits, draw_splits, ("splits/kept.json",)),
    "model": Readable(
        lambda root: save_model(ConceptBottleneck(torch.eye(2, 4), LinearHead(torch.ones(3, 2))), root / "m"),
        lambda root: load_model(root / "m"), ("m",),
    ),
    "sparse heads": Readable(
        lambda root: save_heads([SparseHead(5, 5.0, 0.1, 0.0, 0.0, 0, torch.eye(2, 3), torch.zeros(2))], root / "n"),
        lambda root: load_heads(root / "n"), ("n",),
    ),
    "gate": Readable(
        lambda root: Gate(torch.ones(4).double(), 0.5, 0.05).save(root / "g"), lambda root: load_gate(root / "g"),
        ("g",),
    ),
    "source card": Readable(
        lambda root: SourceCard(torch.ones(4, 3), torch.tensor([0, 0, 1, 1])).save(root / "s"),
        lambda root: load_source_card(root / "s"), ("s",),
    ),
    "dictionary": Readable(
        lambda root: write_dictionary(root / "d.safetensors", Dictionary(torch.eye(4, 3), torch.zeros(3), k=1)),
        lambda root: read_dictionary(root / "d.safetensors"),
        ("d.safetensors",),
    ),
    "dictionary of saev": Readable(
        lambda root: save_saev(root / "sae.pt"), lambda root: read_dictionary(root / "sae.pt"), ("sae.pt",)
    ),
    "dictionary of SAELens": Readable(
        save_saelens, lambda root: read_dictionary(root, dim=3), ("cfg.json", "sae_weights.safetensors")
    ),
    "shard": Readable(
        lambda root: write_shard(root, "00000", {"features": torch.ones(2, 3)}, {"errors": {}}),
        lambda root: (peek(root / "00000.safetensors", "features"), read_shard(root / "00000.safetensors")),
        ("00000.safetensors",),
    ),
    "checkpoint": Readable(save_checkpoint, lambda root: is_sound(root / "last.ckpt"), ("last.ckpt",)),
    "fingerprints": Readable(
        lambda root: (tree(**{"a.png": PNG})(root), read_fingerprints(root))[0], read_fingerprints,
        ("fingerprints.sqlite",),
    ),
    "picture": Readable(tree(**{"a.png": PNG}), lambda root: open_image(root / "a.png"), ("a.png",)),
}  # fmt: skip
READABLE |= ARRAYS | PICTURES | RUNS


def _use_edits(file: Path) -> None:
    edits = load_edits(file)
    edits.save(file.with_name("again.yaml"))
    assert load_edits(file.with_name("again.yaml")) == edits
    [str(edit) for edit in edits.edits]
    if edits.record is not None:
        str(edits.record), edits.record.warnings("0f", "birds/val")
    edits.for_picture("a.png", "there"), edits.samples, edits.domains
    edits.check(["red", "blue"], ["a"])


def _with_index(root: Path) -> None:
    """Read the index under the name that it has for the tar file as it is now."""
    for file in (root / "tars").iterdir():
        file.unlink()
    open_tars(root, ["t.tar"], root)
    (file,) = (root / "tars").iterdir()
    file.write_bytes((root / "index.parquet").read_bytes())
    images, labels = open_tars(root, ["t.tar"], root)
    assert len(images) == len(labels)
