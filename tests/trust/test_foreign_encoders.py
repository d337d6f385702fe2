"""An encoder folder of a stranger runs no code of its own, whichever file asks for it and whatever anybody answers."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import PROJECT

from cbm.encoders import create_encoder
from cbm.encoders.foreign_code import check_settings, no_foreign_code
from cbm.errors import UserError

BERT = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 32, "vocab_size": 100}  # fmt: skip


def change(file: Path, **settings) -> None:
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(content | settings))


def text_cfg(folder: Path, **settings) -> None:
    content = json.loads((folder / "open_clip_config.json").read_text())
    content["model_cfg"]["text_cfg"] |= settings
    (folder / "open_clip_config.json").write_text(json.dumps(content))


def vision_cfg(folder: Path, **settings) -> None:
    content = json.loads((folder / "open_clip_config.json").read_text())
    content["model_cfg"]["vision_cfg"] |= settings
    (folder / "open_clip_config.json").write_text(json.dumps(content))


def own_tokenizer(folder: Path, auto_map: object = None, **kwargs) -> None:
    auto_map = auto_map or {"AutoTokenizer": ["own.Own", "own.Own"]}
    change(folder / "tokenizer_config.json", tokenizer_class="Own", auto_map=auto_map)
    if kwargs:
        text_cfg(folder, tokenizer_kwargs=kwargs)


def own_text_tower(folder: Path, **settings) -> None:
    change(folder / "config.json", **settings)
    text_cfg(folder, hf_model_name=str(folder), hf_proj_type="linear")


def pickled(folder: Path, name: str) -> None:
    """Weights that make CODE_WAS_RUN when they are unpickled."""

    class Mkdir:
        def __reduce__(self):
            return (os.mkdir, (str(folder / "CODE_WAS_RUN"),))

    (folder / "open_clip_model.safetensors").unlink()
    torch.save(Mkdir(), folder / name)


MEMBERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "tokenizer settings trust remote code": (
        lambda f: own_tokenizer(f, trust_remote_code=True), "'trust_remote_code' is not allowed"
    ),
    "a tokenizer of its own, and somebody says yes": (lambda f: own_tokenizer(f), "brings Python code"),
    "the same as lists were written": (lambda f: own_tokenizer(f, ["own.Own", "own.Own"]), "brings Python code"),
    "of another repository": (
        lambda f: own_tokenizer(f, {"AutoTokenizer": [f"{f}--own.Own"] * 2}), "brings Python code"
    ),
    "the tokenizer is a model": (
        lambda f: (
            change(f / "tokenizer_config.json", tokenizer_class="AutoModel"),
            change(f / "config.json", model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModel": "own.Own"}),
        ),
        "'AutoModel', which is no tokenizer",
    ),
    "the tokenizer is a tokenizer of anybody": (
        lambda f: (own_tokenizer(f), change(f / "tokenizer_config.json", tokenizer_class="AutoTokenizer")),
        "no tokenizer|brings Python code",
    ),
    "the tokenizer is what unpickles indexes": (
        lambda f: change(f / "tokenizer_config.json", tokenizer_class="RagRetriever"),
        "'RagRetriever', which is no tokenizer|cannot be loaded",
    ),
    "the same in config.json": (
        lambda f: (
            change(f / "config.json", **BERT, tokenizer_class="AutoModel", auto_map={"AutoModel": "own.Own"}),
            change(f / "tokenizer_config.json", tokenizer_class=None),
        ),
        "'AutoModel', which is no tokenizer",
    ),
    "a text tower of its own": (
        lambda f: own_text_tower(f, model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModel": "own.Own"}),
        "brings Python code",
    ),
    "a text tower whose attention is fetched": (
        lambda f: own_text_tower(f, **BERT, _attn_implementation="somebody/kernel"),
        "attention by 'somebody/kernel'",
    ),
    "a text tower that open_clip does not know": (
        lambda f: own_text_tower(f, model_type="gpt2"),
        "a text tower of type 'gpt2'",
    ),
    "an image tower from a folder": (
        lambda f: vision_cfg(f, timm_model_name=f"local-dir:{f}"), "is no model of the timm library"
    ),
    "an image tower of somebody on the hub": (
        lambda f: vision_cfg(f, timm_model_name="hf-hub:somebody/model"), "is no model of the timm library"
    ),
    "pickled weights": (lambda f: pickled(f, "open_clip_pytorch_model.bin"), "cannot be loaded"),
    "pickled weights of another name": (lambda f: pickled(f, "x.pth"), "cannot be loaded"),
    "a vocabulary elsewhere": (
        lambda f: text_cfg(f, hf_tokenizer_name=None, tokenizer_kwargs={"bpe_path": "/etc/passwd"}), "'bpe_path' is not"
    ),
    "a download by nltk": (
        lambda f: text_cfg(f, hf_tokenizer_name="", tokenizer_kwargs={"reduction_mask": "syntax"}),
        "'reduction_mask' is not",
    ),
    "another kind of file": (lambda f: text_cfg(f, tokenizer_kwargs={"gguf_file": "x"}), "'gguf_file' is not allowed"),
    "a value of another type": (lambda f: text_cfg(f, tokenizer_kwargs={"clean": {"a": 1}}), "'clean' is {'a': 1}"),
    "an unknown value": (lambda f: text_cfg(f, tokenizer_kwargs={"clean": "lowre"}), "did you mean 'lower'"),
    "no settings": (lambda f: text_cfg(f, tokenizer_kwargs=["trust_remote_code"]), "tokenizer_kwargs are"),
    "no text tower": (
        lambda f: change(f / "open_clip_config.json", model_cfg={"vision_cfg": {}}), "model_cfg.text_cfg"
    ),
    "a billion layers": (lambda f: text_cfg(f, layers=10**9), "1000000000 layers: expected at most 1,000"),
    "stages without end": (lambda f: vision_cfg(f, layers=[1, 1, 1, 10**9]), "1000000000 layers"),
    "layers that are no number": (lambda f: text_cfg(f, layers="12"), "'12' layers"),
    "a text tower of a billion layers": (
        lambda f: own_text_tower(f, **BERT | {"num_hidden_layers": 10**9}), "1000000000 layers"
    ),
    "pictures that fill all memory": (lambda f: vision_cfg(f, image_size=10**6), "pictures of size|cannot be loaded"),
    "colours that are no numbers": (
        lambda f: change(f / "open_clip_config.json", preprocess_cfg={"mean": ["a"], "std": [1]}), "cannot be loaded"
    ),
    "a pipe": (lambda f: os.mkfifo(f / "vocab.txt"), "'vocab.txt' is neither a file nor a folder"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the bundled encoder with a module that leaves CODE_WAS_RUN; everybody is answered with yes."""
    folder = tmp_path / "encoder"
    shutil.copytree(PROJECT / "cbm" / "encoders" / "tiny_clip", folder)
    (folder / "own.py").write_text(
        f"import os\nos.makedirs({str(folder / 'CODE_WAS_RUN')!r}, exist_ok=True)\n"
        "from transformers import BertConfig, BertModel, PreTrainedTokenizerFast\n"
        "class Own(BertConfig):\n    model_type = 'own'\n"
    )
    monkeypatch.setattr("builtins.input", lambda *args: "y")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setenv("TRUST_REMOTE_CODE", "1")
    return folder


@pytest.mark.parametrize("member", MEMBERS)
def test_no_code_of_a_folder_is_run(folder: Path, member: str):
    prepare, message = MEMBERS[member]
    prepare(folder)
    with pytest.raises(UserError, match=message) as refused:
        create_encoder(f"local-dir:{folder}", device="cpu")
    assert not (folder / "CODE_WAS_RUN").exists()
    assert "\n" not in str(refused.value)
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"  # as the user left it
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


def test_what_an_encoder_may_say_it_may_say_still(folder: Path):
    """Settings of open_clip's own, and a config.json whose code nobody needs."""
    text_cfg(folder, tokenizer_kwargs={"clean": "lower", "strip_sep_token": False})
    change(folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.Own"})
    encoder = create_encoder(f"local-dir:{folder}", device="cpu")
    assert torch.equal(encoder.tokenizer(["A  YELLOW belly"]), encoder.tokenizer(["a yellow belly"]))
    assert not (folder / "CODE_WAS_RUN").exists()


def test_models_that_open_clip_knows_pass():
    import open_clip

    for name in open_clip.list_models():
        check_settings(open_clip.get_model_config(name), name)


def test_a_text_tower_of_the_library(folder: Path):
    import open_clip
    import safetensors.torch

    own_text_tower(folder, **BERT | {"vocab_size": 10_000}, auto_map={"AutoConfig": "own.Own", "AutoModel": "own.Own"})
    content = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    content["text_cfg"]["hf_model_pretrained"] = False
    model = open_clip.CustomTextCLIP(**content)
    safetensors.torch.save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    encoder = create_encoder(f"local-dir:{folder}", device="cpu")
    assert encoder.encode_text(["a", "b"]).shape == (2, encoder.dim)
    assert not (folder / "CODE_WAS_RUN").exists()


def test_while_an_encoder_is_read_not_even_our_own_call_gets_code_run(folder: Path):
    """The wall behind the checks."""
    from transformers import AutoTokenizer

    own_tokenizer(folder)
    with pytest.raises(UserError, match="brings Python code"), no_foreign_code("e"):
        AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    assert not (folder / "CODE_WAS_RUN").exists()


@pytest.mark.parametrize("name", ["timm:local-dir:", "timm:hf-hub:", "timm:", "torchvision:"])
def test_image_only_doors_take_names_only(folder: Path, name: str):
    change(folder / "config.json", architecture="test_resnet", model_args={"norm_layer": "own.Own"})
    with pytest.raises(UserError, match="unknown"):
        create_encoder(f"{name}{folder}", device="cpu")
