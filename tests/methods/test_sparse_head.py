"""The penalty of the sparse head, chosen by the worst group of the validation images."""

import numpy as np
import pytest
import torch

from cbm.data.features import FeatureData, FeatureSplit
from cbm.errors import UserError
from cbm.methods.sparse_head import SparseHeadConfig, check_sparse_head, fit_sparse_head, worst_group_of

DIRECTIONS = torch.eye(6)


def split(n: int, agree: float, seed: int) -> FeatureSplit:
    """A background (direction 0) that goes with the class, and five weaker marks of the class itself."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (n,), generator=generator)
    same = torch.rand(n, generator=generator) < agree
    place = torch.where(same, y, 1 - y)
    x = torch.randn(n, 6, generator=generator)
    x[:, 0] += 2.5 * (2 * place - 1)
    x[:, 1:] += 0.6 * (2 * y - 1)[:, None]
    found = FeatureSplit(x, y, [f"{i}" for i in range(n)])
    found.groups = {"place": place.numpy().astype(np.int64)}
    return found


def planted(groups: bool = True) -> FeatureData:
    splits = {"train": split(800, 0.95, 0), "val": split(600, 0.8, 1), "test": split(2000, 0.5, 2)}
    if not groups:
        for each in splits.values():
            each.groups = {}
    return FeatureData(splits, ["land", "water"], group_names={"place": ["land", "water"]} if groups else {})


def test_the_point_that_is_best_for_the_worst_group_is_kept():
    data = planted()
    quality = worst_group_of(data)
    fitted = {name: fit_sparse_head(data, DIRECTIONS, SparseHeadConfig(select=name)) for name in
              ("balanced", "worst_group")}  # fmt: skip
    found = {name: quality(model(data.val.x)) for name, model in fitted.items()}
    assert found["worst_group"] > found["balanced"]
    tested = {}
    for name, model in fitted.items():
        right = (model(data.test.x).argmax(dim=1) == data.test.y).numpy()
        place = data.test.groups["place"]
        tested[name] = min(
            float(right[(data.test.y.numpy() == c) & (place == g)].mean()) for c in (0, 1) for g in (0, 1)
        )
    assert tested["worst_group"] > tested["balanced"]


def test_worst_group_is_the_minimum_over_groups_of_ten():
    data = planted()
    logits = torch.randn(len(data.val), 2, generator=torch.Generator().manual_seed(3))
    right = logits.argmax(dim=1) == data.val.y
    place = torch.from_numpy(data.val.groups["place"])
    shares = [float(right[(data.val.y == c) & (place == g)].float().mean()) for c in (0, 1) for g in (0, 1)]
    assert worst_group_of(data)(logits) == pytest.approx(min(shares))


def test_without_groups_it_is_refused_in_one_line():
    with pytest.raises(UserError, match="dataset.args.groups"):
        fit_sparse_head(planted(groups=False), DIRECTIONS, SparseHeadConfig(select="worst_group"))
    with pytest.raises(UserError, match="did you mean 'worst_group'"):
        check_sparse_head(SparseHeadConfig(select="worst_groups"))


def test_where_rare_groups_have_no_validation_images_it_is_refused():
    data = planted()
    val = data.val
    common = val.groups["place"] == val.y.numpy()
    data.splits["val"] = val.take(np.flatnonzero(common))
    with pytest.raises(UserError, match="no class has two groups of ten validation images"):
        worst_group_of(data)
