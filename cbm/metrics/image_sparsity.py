"""How many concepts one image's decision uses: sparsity of its contributions or activations."""

import torch
from torch import Tensor
from torchmetrics import Metric

KEYS = ("l0", "l0_1pct", "hoyer", "participation", "entropy_concepts", "gini")


class ImageSparsity(Metric):
    """Mean sparsity of rows ``a`` of K numbers, one row per image.

    - ``l0``: numbers other than zero; ``l0_1pct``: larger than one hundredth of the largest.
    - ``hoyer``: ``(sqrt(K) - |a|_1 / |a|_2) / (sqrt(K) - 1)``, 0 for equal sizes, 1 for one alone (Hoyer, JMLR 2004).
    - ``participation``: ``|a|_1^2 / |a|_2^2``, how many equal numbers would be as spread out: K to 1.
    - ``entropy_concepts``: ``exp(entropy(softmax(a)))``.
    - ``gini``: of the sizes, 0 to 1 - 1/K (Hurley and Rickard, IEEE Trans. Inf. Theory 2009).

    A row of zeros counts with 0 in ``l0`` and ``participation`` and is the sparsest (``hoyer`` and ``gini`` 1 and
    1 - 1/K).
    """

    higher_is_better = False
    full_state_update = False
    sums: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(len(KEYS), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        """Add the rows of ``values`` ``[N, K]``."""
        size = values.abs().double()
        k, total, largest = size.shape[1], size.sum(dim=1), size.amax(dim=1, keepdim=True)
        norm = size.norm(dim=1).clamp(min=1e-300)
        empty = total == 0
        ratio = total / norm
        hoyer = (k**0.5 - ratio) / (k**0.5 - 1) if k > 1 else torch.ones_like(ratio)
        rank = torch.arange(1, k + 1, device=size.device)
        ordered = (size.sort(dim=1).values * (k - rank + 0.5)).sum(dim=1)
        gini = 1 - 2 * ordered / (k * total.clamp(min=1e-300))
        log_share = values.double().log_softmax(dim=1)
        columns = (
            (size > 0).sum(dim=1),
            (size > 0.01 * largest).sum(dim=1),
            hoyer.masked_fill(empty, 1.0),
            ratio.square(),
            (-(log_share.exp() * log_share).sum(dim=1)).exp(),
            gini.masked_fill(empty, 1 - 1 / k),
        )
        self.sums += torch.stack([column.double().sum() for column in columns])
        self.count += len(values)

    def compute(self) -> dict[str, Tensor]:
        """The means, by name."""
        return dict(zip(KEYS, (self.sums / self.count).unbind()))
