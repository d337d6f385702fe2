from itertools import combinations, product

import pytest
import torch
from small_bottleneck import C, bottleneck

from cbm.editing import contrast, counterfactual
from cbm.editing.apply import level


def brute(model, x, budget, frozen=(), target=None) -> int | None:
    """Fewest concepts that flip a decision: every subset, every combination of ends."""
    logits, a = model(x[None])[0], model.activations(x[None])[0]
    now = int(logits.argmax())
    free = [k for k in range(len(a)) if k not in frozen]
    for size in range(1, budget + 1):
        for chosen in combinations(free, size):
            ends = [(level(model, k, "absent"), level(model, k, "present")) for k in chosen]
            for values in product(*ends):
                moved = a.clone()
                for k, value in zip(chosen, values):
                    low, high = ends[chosen.index(k)]
                    moved[k] = value if min(low, float(a[k])) <= value <= max(high, float(a[k])) else a[k]
                after = int((model.weights() @ moved + model.head.bias).argmax())
                if after != now and target in (None, after):
                    return size
    return None


@pytest.mark.parametrize("frozen", [(), (0, 3)])
def test_no_smaller_change_flips_the_decision(frozen):
    model, x = bottleneck()
    model.reference.copy_(model.activations(x).mean(dim=0))
    model.spread *= 0.1
    sizes = []
    for picture in x:
        found = counterfactual(model, picture, budget=3, frozen=frozen)
        fewest = brute(model, picture, 3, frozen)
        assert (found and len(found.columns)) == fewest
        if found:
            sizes.append(len(found.columns))
            assert not set(found.columns) & set(frozen)
            a = model.activations(picture[None])[0]
            a[found.columns] = torch.tensor(found.values)
            logits = model.weights() @ a + model.head.bias
            assert int(logits.argmax()) == found.after != found.before
            top = logits.topk(2).values
            assert top[0] - top[1] < 0.01  # and no further than it must
    assert len(set(sizes)) > 1


def test_a_target_and_what_cannot_be():
    model, x = bottleneck()
    reached = [counterfactual(model, x[0], target=target, budget=9) for target in range(C)]
    assert sum(found is not None for found in reached) >= 2
    assert all(found is None or found.after == target for target, found in enumerate(reached))
    assert counterfactual(model, x[0], frozen=range(9)) is None
    assert counterfactual(model, x[0], target=int(model(x[:1]).argmax())) is None


def test_why_this_and_not_that():
    model, x = bottleneck()
    logits, base = model(x), model.base()
    why = contrast(model, x, 2, 0)
    torch.testing.assert_close(why.sum(1) + base[2] - base[0], logits[:, 2] - logits[:, 0], rtol=1e-4, atol=1e-4)
