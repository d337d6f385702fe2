import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from large_tensors import LargeTensors

from cbm.kernels import association, association_adam_, association_vectors, captured


def problem(c: int, k: int, d: int, dtype: torch.dtype = torch.float64):
    g = torch.Generator().manual_seed(c * 10_007 + k * 101 + d)
    shapes = (c, k), (k, d), (c, d)
    return [torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes]


@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 12), st.integers(1, 17), st.booleans())
@settings(max_examples=40, deadline=None)
def test_vectors_and_gradients_are_those_of_a_softmax(c: int, k: int, d: int, step: int, transposed: bool):
    logits, concepts, upstream = problem(c, k, d)
    if transposed:
        concepts = concepts.T.contiguous().T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(association, "_COLUMNS", step)
        leaves = [t.requires_grad_() for t in (logits, concepts)]
        vectors, lse = association_vectors(*leaves)
        found = torch.autograd.grad((vectors * upstream).sum(), leaves)
    expected = leaves[0].softmax(1) @ leaves[1]
    torch.testing.assert_close(vectors, expected)
    torch.testing.assert_close(lse, leaves[0].logsumexp(1))
    torch.testing.assert_close(found, torch.autograd.grad((expected * upstream).sum(), leaves))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype):
    logits, concepts, _ = problem(7, 3000, 64, dtype)
    vectors, _ = association_vectors(logits, concepts)
    assert vectors.dtype == torch.float32
    expected = logits.double().softmax(1) @ concepts.double()
    assert float((vectors - expected).norm() / expected.norm()) < 1e-5


def test_large_logits_do_not_overflow():
    logits = torch.tensor([[1000.0, 0.0, -1000.0]])
    vectors, lse = association_vectors(logits, torch.eye(3))
    assert vectors.tolist() == [[1.0, 0.0, 0.0]]
    assert lse.tolist() == [1000.0]


@pytest.mark.parametrize("shape", [(5, 40, 8), (300, 70, 8), (3, 1, 2)])
def test_steps_are_those_of_adam_through_the_softmax(shape):
    logits, concepts, _ = problem(*shape)
    mine, theirs = logits.clone(), logits.clone().requires_grad_()
    moments = torch.zeros_like(mine), torch.zeros_like(mine)
    adam = torch.optim.Adam([theirs], lr=0.1, betas=(0.8, 0.95), eps=1e-6)
    g = torch.Generator().manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(association, "_COLUMNS", 16)
        for step in range(1, 13):
            target = torch.randn(shape[0], shape[2], generator=g, dtype=torch.float64)
            vectors, lse = association_vectors(mine, concepts)
            association_adam_(
                mine, *moments, 2 * (vectors - target), vectors, lse, concepts, step, lr=0.1, betas=(0.8, 0.95),
                eps=1e-6,
            )  # fmt: skip
            adam.zero_grad()
            (theirs.softmax(1) @ concepts - target).square().sum().backward()
            adam.step()
    torch.testing.assert_close(mine, theirs.detach())


def test_nothing_of_the_size_of_the_head_is_made():
    logits, concepts, upstream = problem(300, 20_000, 8, torch.float32)
    moments = torch.zeros_like(logits), torch.zeros_like(logits)
    with LargeTensors(logits.numel() // 4, logits, *moments) as made:
        vectors, lse = association_vectors(logits, concepts)
        association_adam_(logits, *moments, upstream, vectors, lse, concepts, 1, lr=0.1)
    assert not made.made
    with LargeTensors(logits.numel() // 4, logits) as made:  # the check itself sees an association
        logits.softmax(1)
    assert made.made


def test_it_compiles():
    logits, concepts, upstream = problem(4, 30, 6, torch.float32)
    logits.requires_grad_()

    def loss(logits):
        return (association_vectors(logits, concepts)[0] * upstream).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits), loss(logits))
    (found,), (expected,) = (torch.autograd.grad(each(logits), logits) for each in (compiled, loss))
    torch.testing.assert_close(found, expected)


def test_errors_say_what_is_wrong():
    logits, concepts, upstream = problem(4, 30, 6)
    moments = torch.zeros_like(logits), torch.zeros_like(logits)
    with pytest.raises(ValueError, match=r"logits has shape \[4, 30\].*expected a floating-point \[>=1, 29\] matrix"):
        association_vectors(logits, concepts[1:])
    vectors, lse = association_vectors(logits, concepts)
    with pytest.raises(ValueError, match="step is 0; expected >= 1"):
        association_adam_(logits, *moments, upstream, vectors, lse, concepts, 0, lr=0.1)
    with pytest.raises(ValueError, match="expected contiguous matrices"):
        association_adam_(logits.T.contiguous().T, *moments, upstream, vectors, lse, concepts, 1, lr=0.1)
    tensors = [t.float() for t in (logits, *moments, upstream, vectors, lse, concepts)]
    with pytest.raises(ValueError, match="backend is 'triton', but a tensor is torch.float32 on cpu"):
        association_adam_(*tensors, 1, lr=0.1, backend="triton")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
def test_steps_are_captured_on_a_gpu_only():
    with pytest.raises(ValueError, match="no CUDA device"):
        captured(lambda: torch.ones(()))
