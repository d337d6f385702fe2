import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_bottleneck import K, bottleneck

from cbm.errors import UserError
from cbm.layers import Largest, Sigmoid, TopK, Valued
from cbm.trained.export import export_model
from cbm.trained.portable import PortableModel

ABOUT = {"classes": ["ant", "bee", "cat", "dog"], "concepts": ["größer", "yellow belly"], "encoder": {"id": "mine"}}
VALUED = Valued(
    torch.zeros(K), torch.tensor([k in (2, 6) for k in range(K)]), torch.tensor([0, -1, -1, 1, 0, 1, -1, 0, -1])
)
ACTIVATIONS = [None, TopK(torch.zeros(K), 3), Largest(torch.zeros(K)), Sigmoid(torch.full((K,), 0.1)), VALUED]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
def test_onnx_runs_without_torch(activation, tmp_path: Path):
    runtime = pytest.importorskip("onnxruntime")
    model, x = bottleneck(activation)
    module = PortableModel(model, top_k=4)
    session = runtime.InferenceSession(export_model(module, tmp_path / "model.onnx", ABOUT))
    assert [output.name for output in session.get_outputs()] == ["logits", "values", "indices"]
    for count in (1, 7, len(x)):  # the file is for any number of pictures
        found = session.run(None, {"features": 3 * x[:count].numpy()})
        for mine, theirs in zip(module(x[:count]), found):
            np.testing.assert_allclose(theirs, mine.numpy(), atol=1e-5)
    said = session.get_modelmeta().custom_metadata_map
    assert {key: json.loads(value) for key, value in said.items()} == ABOUT


@pytest.mark.parametrize("activation", [None, TopK(torch.zeros(K), 3), VALUED], ids=lambda a: type(a).__name__)
def test_a_torch_program_needs_no_operation_of_ours(activation, tmp_path: Path):
    model, x = bottleneck(activation)
    module = PortableModel(model, top_k=4)
    extra = {"cbm.json": ""}
    program = torch.export.load(export_model(module, tmp_path / "model.pt2", ABOUT), extra_files=extra)
    assert not [node for node in program.graph.nodes if "cbm" in str(node.target)]
    assert json.loads(extra["cbm.json"]) == ABOUT
    for count in (1, len(x)):
        for mine, theirs in zip(module(x[:count]), program.module()(x[:count])):
            torch.testing.assert_close(theirs, mine)


def test_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    module = PortableModel(bottleneck()[0])
    assert export_model(module, tmp_path / "anything", ABOUT, "pt2").read_bytes()[:2] == b"PK"
    with pytest.raises(UserError, match=r"format 'onx'.*did you mean 'onnx'"):
        export_model(module, tmp_path / "model.onx", ABOUT)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs two packages.*\.\[export\]"):
        export_model(module, tmp_path / "model.onnx", ABOUT)
    assert not (tmp_path / "model.onnx").exists()
