"""``backend`` means the same wherever there is a Triton path: which code computes, never which algorithm."""

import ast
import inspect
from pathlib import Path

import pytest
import torch

import cbm.kernels
from cbm.kernels import interventions
from cbm.kernels.backend import interpreted

X, CONCEPTS, HEAD = torch.randn(6, 4), torch.randn(5, 4), torch.randn(3, 5)
Y = torch.tensor([0, 1, 2, 0, 1, 2])
CALLS = {
    "association_adam_": (lambda: (*(torch.zeros(3, 5) for _ in range(3)), torch.randn(3, 4), torch.randn(3, 4),
                                   torch.zeros(3), CONCEPTS, 1), {"lr": 0.1}),
    "concept_scores": (lambda: (X, CONCEPTS), {}),
    "fused_bottleneck_logits": (lambda: (X, CONCEPTS, HEAD), {"activation": "sigmoid"}),
    "fused_bottleneck_loss": (lambda: (X, CONCEPTS, HEAD, Y), {"activation": "sigmoid"}),
    "gumbel_noise": (lambda: (6, 5, 0), {}),
    "gumbel_topk": (lambda: (X, CONCEPTS, 2, 1.0, 0), {}),
    "intervene": (lambda: (torch.randn(6, 3), torch.arange(5).expand(1, 6, 5), torch.randn(1, 6, 5),
                           HEAD.T.contiguous(), Y), {}),
    "score_moments": (lambda: (torch.randn(2**17, 1).bfloat16(), CONCEPTS[:, :1]), {}),
    "topk_concepts": (lambda: (X, CONCEPTS, 2), {}),
}  # fmt: skip
"""Arguments of every operation that has Triton kernels."""


def with_kernels() -> set[str]:
    """The public operations that import ``cbm.kernels.gpu``, or call in their module what does."""
    found = set()
    for module in {inspect.getmodule(getattr(cbm.kernels, name)) for name in cbm.kernels.__all__}:
        tree = ast.parse(Path(module.__file__).read_text())
        bodies: dict[str, list[ast.AST]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                ops = [d.args[0].value.split("::")[1] for d in node.decorator_list
                       if isinstance(d, ast.Call) and ast.unparse(d.func) == "torch.library.custom_op"]  # fmt: skip
                for name in (node.name, *ops):
                    bodies.setdefault(name, []).append(node)
        reach = {
            name: {
                "GPU" if isinstance(part, ast.ImportFrom) and (part.module or "").startswith("cbm.kernels.gpu") else
                part.attr if isinstance(part, ast.Attribute) else getattr(part, "id", "")
                for node in nodes for part in ast.walk(node)
            }
            for name, nodes in bodies.items()
        }  # fmt: skip
        for _ in reach:
            reach = {name: seen.union(*(reach.get(one, set()) for one in seen)) for name, seen in reach.items()}
        found |= {name for name in cbm.kernels.__all__ if "GPU" in reach.get(name, ())}
    return found


def test_whatever_has_kernels_takes_a_backend():
    assert with_kernels() == set(CALLS)
    for name in cbm.kernels.__all__:
        known = inspect.signature(getattr(cbm.kernels, name)).parameters
        assert ("backend" in known) == (name in CALLS), name
        if "backend" in known:
            assert known["backend"].default == "auto"
            assert known["backend"].kind == inspect.Parameter.KEYWORD_ONLY


def test_a_plan_is_a_choice_of_algorithms():
    plans = {name for name in cbm.kernels.__all__ if "plan" in inspect.signature(getattr(cbm.kernels, name)).parameters}
    assert plans == {"linear_bottleneck_logits", "fused_bottleneck_logits", "fused_bottleneck_loss"}


@pytest.mark.parametrize("name", CALLS)
def test_the_three_words(name: str):
    arguments, settings = CALLS[name]

    def call(backend: str) -> object:
        return getattr(cbm.kernels, name)(*arguments(), **settings, backend=backend)

    call("auto")
    call("torch")
    for word in ("cuda", "chunked", "single", "", None):
        with pytest.raises(ValueError, match=f"^backend is {word!r}; expected 'auto', 'torch' or 'triton'$"):
            call(word)
    if interpreted():
        call("triton")
    elif not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"^backend is 'triton', but a tensor is torch.\w+ on cpu; expected "):
            call("triton")


def test_what_no_kernel_takes_is_said_in_the_same_words():
    """More classes or picks than a kernel keeps: "auto" falls back, an unknown word stays unknown."""
    many = interventions._MOST_CLASSES + 1
    arguments = torch.randn(2, many), torch.arange(3).expand(1, 2, 3), torch.randn(1, 2, 3), torch.randn(3, many), Y[:2]
    with pytest.raises(ValueError, match="^backend is 'cuda'"):
        cbm.kernels.intervene(*arguments, backend="cuda")
    with pytest.raises(ValueError, match="^backend is 'triton', but .*expected "):
        cbm.kernels.intervene(*arguments, backend="triton")
    x, concepts = torch.randn(2, 4), torch.randn(200, 4)
    for word, said in (("cuda", "expected 'auto'"), ("triton", "but ")):
        with pytest.raises(ValueError, match=f"^backend is '{word}'.*{said}"):
            cbm.kernels.topk_concepts(x, concepts, 150, backend=word)
        with pytest.raises(ValueError, match=f"^backend is '{word}'.*{said}"):
            cbm.kernels.gumbel_topk(x, concepts, 150, 1.0, 0, backend=word)
