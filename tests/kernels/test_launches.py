"""Every operation through Triton's own launch path, for GPUs that need not be there: all arguments fit and compile."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

from bottleneck_problem import affine, leaves, problem
from pretended_launch import pretended_launches

from cbm.kernels import (
    association_adam_,
    concept_scores,
    fused_bottleneck_logits,
    fused_bottleneck_loss,
    gumbel_noise,
    gumbel_topk,
    intervene,
    topk_concepts,
)
from cbm.kernels.gpu.tiles import WIDE

pytestmark = pytest.mark.skipif(WIDE, reason="the interpreter is on: nothing is compiled")


def train(t, **options):
    """Loss, logits, scores and samples with all their gradients."""
    leaf = leaves(t, "x", "concepts", "head", "alpha", "beta", "bias")
    x, concepts, head = leaf["x"], leaf["concepts"], leaf["head"]
    loss, _ = fused_bottleneck_loss(
        x,
        concepts,
        head,
        leaf["y"],
        activation="sigmoid",
        bias=leaf["bias"],
        plan="chunked",
        l1_scores=0.1,
        **affine(leaf),
    )
    logits = fused_bottleneck_logits(x, concepts, head, activation="sigmoid", plan="chunked", **affine(leaf))
    scores = concept_scores(x, concepts, activation="sigmoid", **affine(leaf))
    sampled = gumbel_topk(x, concepts, 3, 0.5, 7, head=head, **affine(leaf))[1]
    (loss + logits.sum() + scores.sum() + sampled.sum()).backward()


@pytest.mark.parametrize(("architecture", "of_x", "of_concepts", "of_head"), [
    (90, torch.bfloat16, torch.bfloat16, torch.float32), (90, torch.float16, torch.float32, torch.float16),
    (80, torch.float16, torch.float16, torch.float16),
])  # fmt: skip
def test_training_launches(architecture, of_x, of_concepts, of_head):
    t = problem(300, 96, 64, 5, torch.float32)
    t["x"], t["concepts"], t["head"] = t["x"].to(of_x), t["concepts"].to(of_concepts), t["head"].to(of_head)
    with pretended_launches(architecture) as seen:
        train(t)
        topk_concepts(t["x"], t["concepts"], 5, **affine(t))
    half = of_x == of_concepts
    makes = {90: "described_scores_kernel", 80: "scores_kernel"}[architecture] if half else "activate_kernel"
    assert {makes, "cross_entropy_kernel", "slope_kernel", "topk_kernel", "unpack_kernel",
            "gumbel_softmax_kernel"} == set(seen.names)  # fmt: skip


def test_rows_of_no_whole_16_bytes_fall_back_to_pointers():
    t = problem(300, 90, 63, 5, torch.bfloat16)
    with pretended_launches(90) as seen:
        concept_scores(t["x"], t["concepts"], activation="tanh")
        topk_concepts(t["x"], t["concepts"], 5)
    assert set(seen.names) == {"scores_kernel", "topk_kernel", "unpack_kernel"}


def test_plain_scores_are_the_library_s():
    t = problem(300, 96, 64, 5, torch.bfloat16)
    with pretended_launches(90) as seen:
        concept_scores(t["x"], t["concepts"])
        concept_scores(t["x"], t["concepts"], out_dtype=torch.bfloat16)
        concept_scores(t["x"].float(), t["concepts"].float())
    assert seen.names == []


def test_adam_and_interventions_launch():
    with pretended_launches(90) as seen:
        state = [torch.zeros(5, 300) for _ in range(3)]
        association_adam_(*state, torch.randn(5, 8), torch.randn(5, 8), torch.zeros(5), torch.randn(300, 8), 1, lr=0.1)
        order, change = torch.zeros(2, 6, 3, dtype=torch.int64), torch.zeros(2, 6, 3)
        y = torch.zeros(6, 2, dtype=torch.int64)[:, 0]
        intervene(torch.randn(6, 5), order, change, torch.randn(4, 5).bfloat16(), y, return_target=True)
    assert seen.names == ["adam_kernel", "intervene_kernel"]


def test_numbers_that_change_from_step_to_step_compile_nothing_new():
    """A seed that is 1, divisible by 16 or beyond 2^31, a ragged last batch, another k or temperature."""
    t = problem(300, 96, 64, 5, torch.bfloat16)
    with pretended_launches(90) as seen:
        for n, k, seed, stream in ((300, 9, 3, 0), (300, 16, 1, 1), (1, 10, 16, 2), (17, 11, 48, 16), (16, 12, 5, 3)):
            gumbel_topk(t["x"][:n], t["concepts"], k, 0.5 + seed, seed, stream=stream)
            topk_concepts(t["x"][:n], t["concepts"], k)
        gumbel_noise(4, 100, 3)
        for seed, stream in ((1, 0), (16, 1), (2**31 - 1, 16)):
            gumbel_noise(4, 100, seed, stream=stream)
        assert {name: len(kernels) for name, kernels in seen.compiled.items()} == {
            "topk_kernel": 2, "unpack_kernel": 1, "noise_kernel": 1
        }  # fmt: skip
        for seed, stream in ((2**40, 0), (-5, 2**31), (2**63, 2**32 - 1), (2**62, 5)):
            gumbel_noise(4, 100, seed, stream=stream)
    assert len(seen.compiled["noise_kernel"]) <= 4  # 32 or 64 bits, each
