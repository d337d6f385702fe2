"""Does a learned concept still mean its name? Correlation of its score with the score of its own text."""

import torch
from torch import Tensor
from torchmetrics import Metric

BLOCK = 1024  # concepts per block of the correlation matrix


class ConceptAlignment(Metric):
    """Correlation over images of the scores a model shows under a name with the scores of the names' own directions.

    A learned layer may turn concepts into anything: for any invertible A, ``(A W, H A^-1)`` classifies like ``(W, H)``.

    - ``alignment``: mean over concepts k of ``corr(z_k, s_k)``.
    - ``self_rank``: share of the concepts whose own name is the one they follow most, ``argmax_j corr(z_k, s_j) = k``
      (a tie with another name of the same direction counts). A concept that does not vary follows nothing.

    Both scores are linear in the features, so all that is kept is their ``[D, D]`` covariance, whatever N and K.

    Args:
        directions: the model's concept directions ``[K, D]``; ``z = x directions^T``.
        names: embeddings ``[K, D]`` of the concepts' texts; ``s = x names^T``.
    """

    higher_is_better = True
    full_state_update = False
    total: Tensor
    products: Tensor
    count: Tensor

    def __init__(self, directions: Tensor, names: Tensor) -> None:
        super().__init__()
        if directions.shape != names.shape:
            raise ValueError(f"directions has shape {list(directions.shape)}, names {list(names.shape)}")
        self.directions, self.names = directions, names
        width = directions.shape[1]
        self.add_state("total", torch.zeros(width, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("products", torch.zeros(width, width, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, x: Tensor) -> None:
        """Add images, given by features ``[N, D]``."""
        x = x.double()
        self.total += x.sum(dim=0)
        self.products += x.T @ x
        self.count += len(x)

    def correlations(self, concepts: Tensor | slice) -> Tensor:
        """Correlations ``corr(z_k, s_j)`` of some concepts k with all names j; 0 if a score does not vary."""
        mean = self.total / self.count
        covariance = self.products / self.count - torch.outer(mean, mean)
        z = self._whiten(self.directions[concepts], covariance)
        return z @ covariance @ self._whiten(self.names, covariance).T

    @staticmethod
    def _whiten(rows: Tensor, covariance: Tensor) -> Tensor:
        """Rows scaled to unit variance of their scores; zero if the variance is only rounding."""
        rows = rows.double()
        variance = ((rows @ covariance) * rows).sum(dim=1, keepdim=True)
        nothing = variance <= 1e-10 * covariance.diagonal().sum() * rows.square().sum(dim=1, keepdim=True)
        return torch.where(nothing, 0.0, rows / variance.clamp(min=1e-300).sqrt())

    def compute(self) -> dict[str, Tensor]:
        """The metrics ``alignment`` and ``self_rank``."""
        own, first = [], []
        for block in torch.arange(len(self.directions), device=self.directions.device).split(BLOCK):
            correlation = self.correlations(block)
            mine = correlation.gather(1, block[:, None]).flatten()
            own.append(mine)
            first.append((mine > 0) & (mine >= correlation.amax(dim=1) - 1e-9))
        return {"alignment": torch.cat(own).mean(), "self_rank": torch.cat(first).double().mean()}
