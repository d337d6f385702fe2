import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cbm.kernels import concept_scores

PHI = {
    "identity": lambda s: s,
    "relu": lambda s: max(s, 0.0),
    "sigmoid": lambda s: 1 / (1 + math.exp(-s)),
    "tanh": math.tanh,
    "cube": lambda s: s**3,
}


def reference(x, concepts, scale, alpha, beta, activation):
    out = torch.zeros(len(x), len(concepts), dtype=torch.float64)
    for i in range(len(x)):
        for j in range(len(concepts)):
            s = float(scale) * sum(float(a) * float(b) for a, b in zip(x[i], concepts[j]))
            s = s * (1 if alpha is None else float(alpha[j])) + (0 if beta is None else float(beta[j]))
            out[i, j] = PHI[activation](s)
    return out


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 4),
    k=st.integers(1, 6),
    d=st.integers(1, 5),
    activation=st.sampled_from(sorted(PHI)),
    with_alpha=st.booleans(),
    with_beta=st.booleans(),
    scale=st.sampled_from([1.0, 2.5, torch.tensor(0.3)]),
)
def test_scores_equal_a_triple_loop(n, k, d, activation, with_alpha, with_beta, scale):
    g = torch.Generator().manual_seed(n + 10 * k + 100 * d)
    x, concepts = torch.randn(n, d, generator=g).double(), torch.randn(k, d, generator=g).double()
    alpha = torch.randn(k, generator=g).double() if with_alpha else None
    beta = torch.rand(k, generator=g).double() + 0.5 if with_beta else None
    out = concept_scores(x, concepts, scale=scale, alpha=alpha, beta=beta, activation=activation)
    torch.testing.assert_close(out, reference(x, concepts, scale, alpha, beta, activation), rtol=1e-12, atol=1e-12)


def test_gradcheck():
    g = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (5, 4), (), (5,), (5,)]
    tensors = [torch.rand(s, generator=g).double().add(0.5).requires_grad_() for s in shapes]
    for activation in ("identity", "sigmoid"):

        def scores(x, concepts, scale, alpha, beta, activation=activation):
            return concept_scores(x, concepts, scale=scale, alpha=alpha, beta=beta, activation=activation)

        assert torch.autograd.gradcheck(scores, tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_nothing_but_the_inputs(dtype):
    g = torch.Generator().manual_seed(0)
    x, concepts = torch.randn(20, 512, generator=g).to(dtype), torch.randn(30, 512, generator=g).to(dtype)
    out = concept_scores(x, concepts, scale=0.01)
    assert out.dtype == torch.float32
    exact = 0.01 * x.double() @ concepts.double().T
    assert float((out - exact).norm() / exact.norm()) < 1e-6


def test_score_errors():
    x, concepts = torch.zeros(2, 3), torch.zeros(4, 3)
    with pytest.raises(ValueError, match="activation is 'gelu'; expected one of 'identity', 'sigmoid'"):
        concept_scores(x, concepts, activation="gelu")
    with pytest.raises(ValueError, match=r"alpha has shape \[3\].*\[4\]"):
        concept_scores(x, concepts, alpha=torch.zeros(3))
    with pytest.raises(ValueError, match=r"inv_norm requires a gradient"):
        concept_scores(x, concepts, inv_norm=torch.zeros(2).requires_grad_())
    with pytest.raises(ValueError, match="backend is 'cuda'; expected 'auto', 'torch' or 'triton'"):
        concept_scores(x, concepts, backend="cuda")
    with pytest.raises(ValueError, match=r"backend is 'triton', but a tensor is torch.float32 on cpu; expected"):
        concept_scores(x, concepts, backend="triton")
    with pytest.raises(ValueError, match=r"x has shape \[3\]"):
        concept_scores(torch.zeros(3), torch.zeros(4, 3))


def test_rows_norms_and_the_dtype_of_the_result():
    g = torch.Generator().manual_seed(0)
    x, concepts = torch.randn(9, 5, generator=g), torch.randn(4, 5, generator=g)
    rows = torch.tensor([8, 0, 0])
    unit = torch.nn.functional.normalize(x, dim=1)
    out = concept_scores(x, concepts, inv_norm=1 / x.norm(dim=1), rows=rows, out_dtype=torch.bfloat16)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), unit[rows] @ concepts.T, rtol=4e-3, atol=1e-3)
