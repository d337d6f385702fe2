"""Nothing is left on the CPU where tensors are on a GPU: kernels and solvers, with values, on one that is not there."""

import pytest
import torch
from pretended_cuda import MixedDevices, OnGpu, pretended_cuda

from cbm import solvers
from cbm.kernels import (
    association_adam_,
    association_vectors,
    class_logits,
    class_sums,
    class_vectors,
    concept_scores,
    feature_moments,
    fused_bottleneck_logits,
    fused_bottleneck_loss,
    gram,
    gumbel_noise,
    gumbel_topk,
    gumbel_topk_gate,
    intervene,
    linear_bottleneck_logits,
    override_logits,
    score_moments,
    soft_khot,
    topk_concepts,
    topk_gate,
)
from cbm.solvers.concept_blocks import ConceptBlocks, concept_blocks
from cbm.solvers.energy import JointEnergy, infer

N, K, D, C = 40, 12, 6, 3


@pytest.fixture(params=["cpu", "cuda"])
def where(request):
    """The same calls on either device; on the GPU that is not there operations of two devices are refused."""
    if request.param == "cpu":
        yield "cpu", set()
    else:
        with pretended_cuda() as seen:
            yield "cuda", seen


def made(where: str, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(where)


def same_device(where: str, *tensors: torch.Tensor) -> None:
    for tensor in tensors:
        assert tensor.device.type == where
        assert isinstance(tensor, OnGpu) == (where == "cuda")


def test_the_pretended_gpu_refuses_what_cuda_refuses():
    with pretended_cuda() as seen:
        x = torch.ones(3, 2, device="cuda", requires_grad=True)
        assert x.is_cuda
        assert torch.zeros(2).to("cuda").device == x.new_zeros(2).device == x.device
        with pytest.raises(MixedDevices, match="meets one on cuda:0"):
            x + torch.ones(3, 2)
        with pytest.raises(TypeError, match="can't convert cuda:0"):
            x.detach().numpy()
        (x.cpu() @ torch.ones(2, 1)).sum().backward()  # through the move
        same_device("cuda", x.grad, x[torch.tensor([0, 2])], x + 1, x * torch.tensor(2.0))
        assert float(x.grad.sum()) == 6
        assert torch.equal(x.detach().to("cpu"), torch.ones(3, 2))
    assert "aten.add.Tensor" in seen


def test_kernels(where):
    device, seen = where
    x, t = made(device, N, D), made(device, K, D, seed=1)
    head, alpha = made(device, C, K, seed=2).requires_grad_(), made(device, K, seed=3).requires_grad_()
    y = (torch.arange(N) % C).to(device)
    for plan in ("eager", "chunked"):
        settings = {"activation": "sigmoid", "alpha": alpha, "scale": 2.0, "plan": plan}
        loss, about = fused_bottleneck_loss(x, t, head, y, **settings)
        logits = fused_bottleneck_logits(x, t, head, **settings)
        found = torch.autograd.grad(loss + logits.sum(), [head, alpha])
        same_device(device, loss, logits, *about.values(), *found)
    rows = torch.tensor([1, 1, 0]).to(device)
    leaf = x.detach().requires_grad_()
    scores = concept_scores(leaf, t, activation="relu", rows=rows, inv_norm=1 / x.norm(dim=1))
    same_device(device, scores, *torch.autograd.grad(scores.sum(), leaf))
    same_device(device, *topk_concepts(x, t, 3), *score_moments(x, t), *feature_moments(x))
    indices, sampled, lse = gumbel_topk(x, t, 3, 0.5, 7, head=head, alpha=alpha)
    same_device(device, indices, lse, *torch.autograd.grad(sampled.sum() + lse.sum(), [head, alpha]))
    gated = gumbel_topk_gate(leaf @ t.T, 3, 0.5, seed=1)
    same_device(device, gated, *torch.autograd.grad(gated.sum(), leaf), topk_gate(x @ t.T, 3), soft_khot(x, 2, 1.0))
    same_device(device, class_sums(x, y, C), gram(x, t)(alpha.detach()), gumbel_noise(3, 8, 1, device=device))
    same_device(device, linear_bottleneck_logits(x, t, head, mean=alpha, scale=3.0), *class_vectors(t, head))
    same_device(device, class_logits(x, made(device, C, D), center=made(device, D)))
    order, change = torch.zeros(2, N, 2, dtype=torch.int64).to(device), torch.zeros(2, N, 2).to(device)
    told = intervene(logits.detach(), order, change, head.detach().T.contiguous(), y, return_target=True)
    same_device(device, *told, override_logits(logits, order[0], change[0], head.T))
    weight = made(device, C, K)
    vectors, lse = association_vectors(weight, t)
    state = [weight, torch.zeros_like(weight), torch.zeros_like(weight)]
    association_adam_(*state, vectors, vectors, lse, t, 1, lr=0.1)
    same_device(device, *state)
    if device == "cuda":  # sums of a GPU in any order
        assert not any("index_add" in name for name in seen)


def test_solvers(where):
    device, _ = where
    x, t = made(device, 90, D), made(device, K, D, seed=1)
    y = (x @ made(device, D, C, seed=5)).argmax(1)
    path = solvers.elastic_net_path(solvers.LinearScores(x, t), y, num_classes=C, n_lambdas=6, nec=[2])
    same_device(device, path.points[-1].weight(), path.at_nec[2].bias)
    assert path.points[-1].gap < 1e-3
    for weight, bias in solvers.fit_logistic(x, y, l2=[0.1, 0.01], num_classes=C):
        same_device(device, weight, bias)
    head = made(device, C, K)
    similarity = solvers.class_similarity(t, made(device, C, D, seed=6))
    same_device(device, similarity, solvers.mutual_information(similarity), solvers.negative_entropy(similarity),
                solvers.posterior_entropy(similarity, 1.0))  # fmt: skip
    candidates = [torch.arange(c * 4, c * 4 + 4).to(device) for c in range(3)]
    for coverage in ("facility_cosine", "maxpool"):
        same_device(device, *solvers.greedy_select(made(device, K).abs(), t, candidates, 2, coverage=coverage))
    mixing = solvers.solve_mixing(x, y, t, head, lam_share=0.1, max_steps=30)
    same_device(device, *(value for value in vars(mixing).values() if isinstance(value, torch.Tensor)))
    same_device(device, *solvers.fit_projection(x, x, t, val_x=x[:20], val_teacher_x=x[:20], steps=5)[:1])
    matrix = solvers.concept_matrix(made(device, C, D), t, norm="col", image_mean=x.mean(0))
    same_device(device, *(value for value in vars(matrix).values() if isinstance(value, torch.Tensor)))
    same_device(device, solvers.cms_scores(x, made(device, C, D), t))
    penalty = torch.tensor([0.0, torch.inf] + [1.0] * (K - 2)).to(device)
    for setting in ({"lam": 0.5, "penalty": penalty}, {"lam": 0.5, "sign": "free", "refit": True}, {"k": 3}):
        codes = solvers.sparse_code(x, t, allowed=torch.arange(K).to(device) != 2, chunk=50, **setting)
        same_device(device, codes.values, codes.columns, codes.gap, codes.violation, codes.count, codes.dense(K))
        same_device(device, codes.reconstruct(t))
        assert int(codes.count.max()) > 1
    assert 0 < solvers.penalty_for_count(x, t, 2) < float((x @ t.T).max())
    same_device(device, *solvers.greedy_projection(x.T @ x, t, 4))
    centres, cluster, cosine = solvers.spherical_kmeans(x, 7, seed=0, chunk=50)
    same_device(device, centres, cluster, cosine, solvers.medoids(x, centres, cluster, chunk=50))
    repeated = torch.eye(D)[:3].repeat(4, 1).to(device)  # fewer directions than clusters: some stay empty
    same_device(device, *solvers.spherical_kmeans(repeated, 5, seed=0), solvers.semi_nmf(repeated, 5, seed=0)[0])
    same_device(device, solvers.semi_nmf(x, 5, seed=0, rows=60, passes=3, chunk=25)[0])


@pytest.mark.parametrize("method", ["direct", "enumerate", "importance", "gibbs", "icm", "relaxed"])
def test_inference_of_energies(where, method):
    device, _ = where
    there = concept_blocks(5, [[0, 1, 2]], [False])
    blocks = ConceptBlocks(there.count, there.values.to(device), there.allowed.to(device))
    joint = JointEnergy(made(device, 5, 4), made(device, 4), made(device, C, 4), blocks)
    clamp = torch.full((6, 5), torch.nan).to(device)
    clamp[0, 3] = 1.0
    found = infer(made(device, 6, C), made(device, 6, 5), joint, method=method, clamp=clamp, sweeps=10)
    same_device(device, found.class_probability, found.concept_probability)
