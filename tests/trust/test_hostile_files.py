"""Nothing in a file is executed, unpacked, or followed out of its folder; a small file stays small."""

import ast
import io
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROJECT
from trust.readable_files import picture

from cbm.data import FeatureStore, read_dataset
from cbm.data.webdataset import open_tars
from cbm.editing import load_edits
from cbm.errors import UserError
from cbm.trained.model import open_image

CODE = [file for folder in ("cbm", "scripts", "benchmarks") for file in sorted((PROJECT / folder).rglob("*.py"))]
FORBIDDEN = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "dill.load",
    "dill.loads", "joblib.load", "shelve.open", "marshal.load", "marshal.loads", "torch.hub.load", "pandas.read_pickle",
    "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "eval", "exec", "compile", "os.system", "os.popen",
    "extract", "extractall", "unpack_archive",
}  # fmt: skip
"""Calls that run what a file says, or put its members where their names say."""
MAKES_TOKENIZERS = {"get_tokenizer", "from_pretrained", "from_config", "HFTokenizer", "HFTextEncoder"}
"""Calls that could import code beside a tokenizer or a text tower: they say ``trust_remote_code=False``."""
MAKES_MODELS = {"create_model", "create_model_and_transforms", "create_model_from_pretrained"}
"""The same of open_clip, where it cannot be said: inside ``no_foreign_code``."""
ALLOWED = {
    ("cbm/files/parsing.py", "yaml.load"): "with a subclass of SafeLoader",
    ("cbm/errors.py", "rapidfuzz.process.extract"): "names that are like another",
    ("cbm/encoders/open_clip.py", "open_clip.create_model_from_pretrained"): "inside no_foreign_code",
    ("benchmarks/cpu.py", "open_clip.create_model_and_transforms"): "a model of open_clip's own, random weights",
    ("benchmarks/kernels/encoding.py", "open_clip.create_model_and_transforms"): "the same",
    ("scripts/train_tiny_clip.py", "open_clip.create_model_from_pretrained"): "of a folder it has written itself",
}


def calls(file: Path) -> list[tuple[str, ast.Call]]:
    """Dotted names of what is called, with the names imports gave them undone."""
    module, meaning = ast.parse(file.read_text()), {}
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            meaning |= {each.asname or each.name: each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            meaning |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
    found = []
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            first, dot, rest = ast.unparse(node.func).partition(".")
            found.append((meaning.get(first, first) + dot + rest, node))
    return found


def dangerous(name: str, call: ast.Call) -> bool:
    settings = {each.arg: ast.unparse(each.value) for each in call.keywords}
    last = name.rpartition(".")[2]
    return (
        name in FORBIDDEN
        or (last in FORBIDDEN and last.startswith(("extract", "unpack")) and "extractfile" not in name)
        or (name == "torch.load" and settings.get("weights_only") != "True")
        or (last == "load_state_dict_from_url" and settings.get("weights_only") != "True")
        or (name == "numpy.load" and settings.get("allow_pickle", "False") != "False")
        or name == "yaml.load"
        or (last in MAKES_TOKENIZERS and settings.get("trust_remote_code") != "False")
        or (last in MAKES_MODELS and name.startswith("open_clip"))
        or settings.get("shell") == "True"
        or settings.get("trust_remote_code") == "True"
        or settings.get("weights_only") == "False"
    )


def test_no_call_runs_what_a_file_says():
    found = {
        (str(file.relative_to(PROJECT)), name) for file in CODE for name, call in calls(file) if dangerous(name, call)
    }
    assert found == set(ALLOWED)


ONLY = {
    "torch.load": "cbm/files/loading.py",
    "yaml.load": "cbm/files/parsing.py",
    "PIL.Image.open": "cbm/files/pictures.py",
    "html.escape": "cbm/files/inert.py",
    "rich.console.Console": "",  # cbm/files/terminal.py makes its own kind
    "tempfile.NamedTemporaryFile": "",
    "rich.markup.escape": "",
    "markupsafe.Markup": "",
}
"""Calls that stand in one file of the package, whose rules hold for everybody; or in none."""


def test_nobody_goes_around_the_rules():
    places = {name: set() for name in ONLY}
    for file in sorted((PROJECT / "cbm").rglob("*.py")):
        for name, _ in calls(file):
            if name in ONLY:
                places[name].add(file.relative_to(PROJECT).as_posix())
    assert {name: " ".join(found) for name, found in places.items()} == ONLY


@pytest.mark.parametrize(
    "line",
    [
        "import pickle\npickle.load(f)", "from pickle import loads as l\nl(b)", "import torch\ntorch.load(f)",
        "import torch as t\nt.load(f, weights_only=False)", "import numpy as np\nnp.load(f, allow_pickle=True)",
        "import yaml\nyaml.load(f, yaml.Loader)", "archive.extractall(p)", "run('ls', shell=True)", "eval('1')",
        "AutoModel.from_pretrained(m, trust_remote_code=True)", "AutoTokenizer.from_pretrained(m)",
        "import open_clip\nopen_clip.get_tokenizer(m)", "from open_clip import get_tokenizer as g\ng(m)",
        "import open_clip as o\no.create_model(m)",
    ],
)  # fmt: skip
def test_the_scan_finds_them(line: str, tmp_path: Path):
    (tmp_path / "code.py").write_text(line)
    assert any(dangerous(name, call) for name, call in calls(tmp_path / "code.py"))


def test_yaml_makes_no_objects_and_no_gigabytes(tmp_path: Path):
    ran = tmp_path / "ran"
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    for letter, before in zip("bcdefghi", "abcdefgh"):
        bomb += f"{letter}: &{letter} [{', '.join([f'*{before}'] * 9)}]\n"
    for content, message in (
        (f"- !!python/object/apply:os.mkdir ['{ran}']", "is not YAML"),
        (bomb, r"a reference \(\*name\) in line 2"),
        ("- {op: mask, concept: a, concept: b}", "a key twice"),
    ):
        (tmp_path / "e.yaml").write_text(content)
        with pytest.raises(UserError, match=message):
            load_edits(tmp_path / "e.yaml")
    assert not ran.exists()


def test_a_pickle_in_place_of_a_checkpoint_runs_nothing(tmp_path: Path):
    from cbm.layers import load_model
    from cbm.training.fit import is_sound

    class Evil:
        def __reduce__(self):
            return (Path.mkdir, (tmp_path / "ran",))

    torch.save({"cbm": Evil()}, tmp_path / "last.ckpt")
    assert not is_sound(tmp_path / "last.ckpt")
    with pytest.raises(UserError, match="was not written by cbm"):
        load_model(tmp_path / "last.ckpt")
    assert not (tmp_path / "ran").exists()


def test_members_of_a_tar_file_are_names_and_nothing_else(tmp_path: Path):
    """Paths that lead out of the folder, links, devices: no file is made, and none outside is read."""
    outside = tmp_path / "secret.png"
    outside.write_bytes(picture())
    data = tmp_path / "data"
    data.mkdir()
    names = ["../../secret.png", str(outside), "a/../../b.png", "good.png"]
    with tarfile.open(data / "t.tar", "w") as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = len(picture())
            archive.addfile(entry, io.BytesIO(picture()))
        for kind, name in ((tarfile.SYMTYPE, "link.png"), (tarfile.LNKTYPE, "hard.png"), (tarfile.CHRTYPE, "null.png")):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, str(outside)
            archive.addfile(entry)
    before = sorted(tmp_path.rglob("*"))
    images, _ = open_tars(data, ["t.tar"], tmp_path / "cache")
    assert images.names == [f"t.tar/{name}" for name in names]
    outside.write_bytes(b"")
    assert all(np.asarray(images.open(row)).shape == (6, 6, 3) for row in range(4))
    assert [path for path in sorted(tmp_path.rglob("*")) if "cache" not in path.parts] == before


def test_a_label_of_a_gigabyte_is_not_read(tmp_path: Path):
    entry = tarfile.TarInfo("a.txt")
    entry.size = 1 << 30
    with (tmp_path / "t.tar").open("wb") as file:
        file.write(entry.tobuf())
        file.truncate(512 + entry.size + 1024)  # a hole: it takes no space
    with pytest.raises(UserError, match="label 'a.txt' has 1,073,741,824 bytes"):
        open_tars(tmp_path, ["t.tar"], tmp_path / "cache")


def bomb(side: int = 60_000) -> bytes:
    """A PNG of a few hundred bytes that says it is gigabytes of pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\x00" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_an_unreadable_picture(tmp_path: Path, colour_folder: Path, pixel_encoder):
    (colour_folder / "red" / "00.png").write_bytes(bomb())
    images = read_dataset("folder", "f", colour_folder, {}).splits["train"].images
    stored = FeatureStore(tmp_path / "c").encode(pixel_encoder, images, num_workers=0, progress=False)
    assert stored.readable.sum() == 59
    assert "DecompressionBombError" in stored.errors["red/00.png"]
    with pytest.raises(UserError, match="cannot read image .*exceeds limit"):
        open_image(colour_folder / "red" / "00.png")
