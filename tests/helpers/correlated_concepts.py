"""Six concepts of which two go together and two exclude each other, beyond what the features say of them."""

import numpy as np

COUNT, DIM = 6, 8
TRUE_01, TRUE_23 = 1.5 / (2 + np.pi**2 / 3), -1.2 / (2 + np.pi**2 / 3)  # on the scale of logistic noise


def drawn(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features and concepts whose log-odds are linear in them plus correlated noise (0 with 1, 2 against 3)."""
    slopes = np.random.RandomState(0).randn(DIM, COUNT) * 0.7
    cov = np.eye(COUNT) * 2.0
    cov[0, 1] = cov[1, 0] = 1.5
    cov[2, 3] = cov[3, 2] = -1.2
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((n, DIM))
    odds = x @ slopes + draw.standard_normal((n, COUNT)) @ np.linalg.cholesky(cov).T
    return x, (draw.random((n, COUNT)) < 1 / (1 + np.exp(-odds))).astype(float)
