import importlib

import pytest
import torch
from large_tensors import LargeTensors

from cbm.kernels import concept_scores, gumbel_noise, gumbel_topk
from cbm.kernels.gumbel_topk import _rows

gumbel_topk_module = importlib.import_module("cbm.kernels.gumbel_topk")

N, K, D, C = 12, 30, 6, 4
SHAPES = {"x": (N, D), "concepts": (K, D), "head": (C, K), "scale": (), "alpha": (K,), "beta": (K,)}


def tensors(seed=0, grad=True):
    g = torch.Generator().manual_seed(seed)
    return {n: (torch.rand(s, generator=g).double() + 0.2).requires_grad_(grad) for n, s in SHAPES.items()}


def sample(t, k=3, tau=0.7, seed=5, row_ids=None, **options):
    affine = {name: t[name] for name in ("scale", "alpha", "beta")}
    return gumbel_topk(t["x"], t["concepts"], k, tau, seed, row_ids, head=t["head"], **affine, **options)


def slow(t, k, tau, noise, inv_norm=None, hard=True):
    """By the textbook: the whole matrix, and a straight-through gate that autograd differentiates."""
    scores = concept_scores(t["x"], t["concepts"], inv_norm=inv_norm) * t["scale"] * t["alpha"] + t["beta"]
    z = (scores + noise) / tau
    p = z.softmax(1)
    indices = z.topk(k).indices
    gate = torch.zeros_like(p).scatter(1, indices, 1.0) + p - p.detach() if hard else p
    return indices, gate @ t["head"].T, z.logsumexp(1)


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("k", [1, 3, K])
def test_samples_and_gradients_are_those_of_the_textbook(k, hard):
    ours, theirs = tensors(), tensors()
    inv_norm = 1 / ours["x"].detach().norm(dim=1)
    noise = gumbel_noise(N, K, 5, dtype=torch.float64)
    g = torch.Generator().manual_seed(1)
    upstream, of_lse = torch.randn(N, C, generator=g).double(), torch.randn(N, generator=g).double()
    found = sample(ours, k, inv_norm=inv_norm, hard=hard)
    expected = slow(theirs, k, 0.7, noise, inv_norm, hard)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1:], expected[1:], rtol=1e-12, atol=1e-12)
    for result in (found, expected):
        ((result[1] * upstream).sum() + (result[2] * of_lse).sum()).backward()
    for name in SHAPES:
        torch.testing.assert_close(ours[name].grad, theirs[name].grad, rtol=1e-11, atol=1e-12)


def test_without_a_head_there_are_no_logits():
    t = tensors()
    indices, logits, lse = gumbel_topk(t["x"], t["concepts"], 3, 1.0, 5)
    assert logits is None
    expected = t["x"] @ t["concepts"].T + gumbel_noise(N, K, 5, dtype=torch.float64)
    torch.testing.assert_close(lse, expected.logsumexp(1))
    lse.sum().backward()
    assert float(t["x"].grad.abs().sum()) > 0


def test_noise_belongs_to_the_picture_and_not_to_the_batch():
    t = tensors(grad=False)
    ids = torch.tensor([900, 3, 12, 2**40, 0, 1, 2, 77, 78, 79, 5, 4])
    whole = sample(t, row_ids=ids)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    for part in order.split(5):
        some = sample(t | {"x": t["x"][part]}, row_ids=ids[part])
        assert torch.equal(some[0], whole[0][part])
        torch.testing.assert_close(some[1:], (whole[1][part], whole[2][part]))


def test_the_temperature_does_not_change_what_is_sampled_and_seeds_do():
    t = tensors(grad=False)
    first = sample(t, tau=0.1)[0]
    assert torch.equal(first, sample(t, tau=5.0)[0])
    for other in (sample(t, seed=6), sample(t, seed=-5), sample(t, stream=1), sample(t, seed=5 + 2**40)):
        assert not torch.equal(other[0], first)
    assert torch.equal(sample(t, seed=5 + 2**64)[0], first)


def test_sampling_follows_the_softmax():
    """One concept of 200,000 equal pictures: counts against softmax(scores), 4 degrees of freedom."""
    x, concepts = torch.ones(200_000, 1), torch.tensor([[2.0], [1.0], [0.0], [-1.0], [0.5]])
    indices = gumbel_topk(x, concepts, 1, 1.0, 3)[0]
    expected = concepts[:, 0].double().softmax(0) * len(x)
    chi_square = ((torch.bincount(indices[:, 0], minlength=5) - expected).square() / expected).sum()
    assert float(torch.special.gammaincc(torch.tensor(2.0).double(), chi_square / 2)) > 1e-3


def test_no_matrix_of_pictures_by_concepts_is_made(monkeypatch):
    n, k = 4000, 1000
    monkeypatch.setattr(gumbel_topk_module, "KEPT_BYTES", 0)
    assert _rows(n, k, torch.device("cpu")) < n / 6
    x, concepts, head = torch.randn(n, 4), torch.randn(k, 4), torch.randn(2, k, requires_grad=True)
    with LargeTensors(n * k // 3, x, concepts) as seen:
        gumbel_topk(x, concepts, 3, 1.0, 0, head=head)[1].sum().backward()
    assert not seen.made


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("names", [("head",), ("x", "concepts", "head", "alpha", "beta")])
def test_what_is_kept_changes_no_gradient(monkeypatch, hard, names):
    """Nothing, some rows (a chunk and a part of the next), all rows."""
    monkeypatch.setattr(gumbel_topk_module, "_rows", lambda n, k, device: 5)
    gradients = []
    for kept_rows in (0, 8, N):
        monkeypatch.setattr(gumbel_topk_module, "KEPT_BYTES", 4 * K * kept_rows)
        t = {name: v.requires_grad_(name in names) for name, v in tensors().items()}
        _, logits, lse = sample(t, hard=hard)
        (logits.square().sum() + lse.sum()).backward()
        gradients.append([t[name].grad for name in names])
    for found in gradients[1:]:
        for a, b in zip(found, gradients[0]):
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)


def test_registration_and_compilation():
    t = tensors()
    arguments = (t["x"], t["concepts"], t["head"], None, t["beta"], None, torch.arange(N), 3, 0.7, 5, 0, True, False, 7)
    torch.library.opcheck(
        torch.ops.cbm.gumbel_topk,
        arguments,
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )
    compiled = torch.compile(lambda head: sample(t | {"head": head})[1], fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(t["head"]), sample(t)[1])


@pytest.mark.parametrize(("options", "message"), [
    ({"k": 31}, "k is 31; expected 1 <= k <= 30"),
    ({"tau": 0.0}, "tau is 0.0; expected > 0"),
    ({"row_ids": torch.arange(3)}, r"row_ids has shape \[3\] and dtype torch.int64; expected an int64 \[12\] vector"),
    ({"row_ids": torch.zeros(12)}, r"row_ids has shape \[12\] and dtype torch.float32; expected an int64"),
    ({"backend": "triton"}, "backend is 'triton', but a tensor is torch.float64 on cpu"),
])  # fmt: skip
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        sample(tensors(), **options)
