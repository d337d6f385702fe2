import pytest
import torch
from large_tensors import LargeTensors

from cbm.kernels import intervene, override_logits

P, N, M, K, C = 3, 20, 7, 9, 5


def problem(dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    activations, truth = torch.randn(N, K, generator=g).to(dtype), torch.randn(N, K, generator=g).to(dtype)
    head, bias = torch.randn(C, K, generator=g).to(dtype), torch.randn(C, generator=g).to(dtype)
    order = torch.stack([torch.stack([torch.randperm(K, generator=g)[:M] for _ in range(N)]) for _ in range(P)])
    order[0, 3, 2:] = -1
    order[1, :, 5] = -1
    return activations, truth, head, bias, order, torch.randint(C, (N,), generator=g)


def changes(activations, truth, order):
    return (truth - activations).expand(P, N, K).gather(2, order.clamp(min=0))


def slow(activations, truth, head, bias, order, y):
    """Concept by concept through the whole head."""
    accuracy, own = torch.zeros(P, M + 1, dtype=torch.float64), torch.zeros(P, N, M + 1, dtype=torch.float64)
    for p in range(P):
        a = activations.clone()
        for step in range(M + 1):
            if step:
                for i in range(N):
                    j = int(order[p, i, step - 1])
                    if j >= 0:
                        a[i, j] = truth[i, j]
            logits = a @ head.T + bias
            accuracy[p, step] = (logits.argmax(1) == y).double().mean()
            own[p, :, step] = logits[torch.arange(N), y]
    return accuracy, own


def test_curves_equal_the_whole_head_at_every_step():
    activations, truth, head, bias, order, y = problem()
    expected_accuracy, expected_own = slow(activations, truth, head, bias, order, y)
    logits = activations @ head.T + bias
    accuracy, own = intervene(
        logits, order, changes(activations, truth, order), head.T.contiguous(), y, return_target=True
    )
    torch.testing.assert_close(accuracy, expected_accuracy)
    torch.testing.assert_close(own, expected_own, rtol=1e-12, atol=1e-12)
    assert intervene(logits, order, changes(activations, truth, order), head.T, y)[1] is None
    assert len(expected_accuracy.unique()) > 3


def test_updates_do_not_drift():
    """1,000 float32 updates against float64."""
    g = torch.Generator().manual_seed(0)
    k = 1000
    logits, votes = torch.randn(4, C, generator=g), torch.randn(k, C, generator=g)
    order = torch.stack([torch.randperm(k, generator=g) for _ in range(4)])[None]
    change = torch.randn(1, 4, k, generator=g)
    y = torch.zeros(4, dtype=torch.long)
    _, own = intervene(logits, order, change, votes, y, return_target=True)
    _, exact = intervene(logits.double(), order, change.double(), votes.double(), y, return_target=True)
    assert float((own - exact).abs().max()) < 1e-4


def test_no_steps_and_equal_logits():
    y = torch.tensor([0, 1])
    none = torch.zeros(1, 2, 0)
    accuracy, _ = intervene(torch.zeros(2, 3), none.long(), none, torch.zeros(4, 3), y)
    assert accuracy.tolist() == [[0.5]]  # of equal logits the first


def test_overrides_equal_the_head_on_changed_activations():
    activations, truth, head, bias, order, _ = problem()
    columns = order[0]
    changed = activations.clone()
    for i in range(N):
        for j in columns[i][columns[i] >= 0].tolist():
            changed[i, j] = truth[i, j]
    change = changes(activations, truth, order)[0]
    found = override_logits(activations @ head.T + bias, columns, change, head.T.contiguous())
    torch.testing.assert_close(found, changed @ head.T + bias, rtol=1e-12, atol=1e-12)
    leaves = [t.detach().clone().requires_grad_() for t in (activations @ head.T, change, head.T.contiguous())]
    assert torch.autograd.gradcheck(lambda z, c, w: override_logits(z, columns, c, w), leaves)


def test_ten_thousand_pictures_and_fifty_concepts_make_nothing_of_their_product_with_the_classes():
    n, m, c = 2000, 50, 40
    order = torch.arange(m).expand(1, n, m).contiguous()
    logits, votes, change = torch.randn(n, c), torch.randn(m, c), torch.randn(1, n, m)
    with LargeTensors(n * m * c // 4, order, change) as seen:
        intervene(logits, order, change, votes, torch.zeros(n, dtype=torch.long))
        override_logits(logits, order[0], change[0], votes)
    assert not seen.made


def test_registration():
    activations, truth, head, bias, order, y = problem(torch.float32)
    arguments = (activations @ head.T, order, changes(activations, truth, order), head.T.contiguous(), y)
    torch.library.opcheck(torch.ops.cbm.intervene, (*arguments, True, False))
    torch.library.opcheck(torch.ops.cbm.intervene, (*arguments, False, False))


def test_errors():
    activations, truth, head, bias, order, y = problem()
    logits, change = activations @ head.T, changes(activations, truth, order)
    with pytest.raises(
        ValueError, match=r"order has shape \[3, 20, 7\] and change \[3, 20, 6\]; expected \[P, 20, M\]"
    ):
        intervene(logits, order, change[..., :6], head.T, y)
    with pytest.raises(ValueError, match=r"votes has shape \[5, 9\].*expected a floating-point \[>=1, 5\]"):
        intervene(logits, order, change, head, y)
    with pytest.raises(ValueError, match="order has concept 8; expected at most 4"):
        intervene(logits, order, change, head.T[:5], y)
    with pytest.raises(ValueError, match=r"y has shape \[3\]; expected \[20\]"):
        intervene(logits, order, change, head.T, y[:3])
    with pytest.raises(
        ValueError, match=r"columns has shape \[3, 20, 7\] and change \[20, 7\]; expected both \[20, m\]"
    ):
        override_logits(logits, order, change[0], head.T)
