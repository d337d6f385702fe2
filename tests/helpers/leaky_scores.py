"""Scores that tell a known amount about the class beyond their concepts: eight concepts of yes and no.

    P(c_k = 1 | y) is .15 or .85,    s_k = a (2 c_k - 1) + b u_k[y] + N(0, 1)

so that ``b = 0`` leaks nothing. The truth is an integral over s; for all scores together, a mean over drawn pictures.
"""

from dataclasses import dataclass

import numpy as np

CONCEPTS = 8
GRID = np.linspace(-12, 12, 4001)
STEP = GRID[1] - GRID[0]


@dataclass(frozen=True)
class Leaky:
    """The problem for C classes."""

    classes: int
    a: float
    b: float

    @property
    def chance(self) -> np.ndarray:
        """P(c_k = 1 | y), ``[C, 8]``."""
        return np.where(np.random.default_rng(1).random((self.classes, CONCEPTS)) < 0.5, 0.85, 0.15)

    @property
    def pull(self) -> np.ndarray:
        """u_k[y], ``[C, 8]``."""
        u = np.random.default_rng(2).standard_normal((self.classes, CONCEPTS))
        return (u - u.mean(0)) / u.std(0)

    def draw(self, n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores ``[n, 8]``, concepts ``[n, 8]`` and classes ``[n]``."""
        generator = np.random.default_rng(seed)
        y = generator.integers(0, self.classes, n)
        c = (generator.random((n, CONCEPTS)) < self.chance[y]).astype(float)
        return self.a * (2 * c - 1) + self.b * self.pull[y] + generator.standard_normal((n, CONCEPTS)), c, y

    def own_leak(self) -> np.ndarray:
        """``I(s_k; y | c_k) / H(y | c_k)``, ``[8]``, by quadrature."""
        found = []
        for k in range(CONCEPTS):
            told = open_ = 0.0
            for value in (0, 1):
                prior = (self.chance[:, k] if value else 1 - self.chance[:, k]) / self.classes
                mean = self.a * (2 * value - 1) + self.b * self.pull[:, k]
                density = np.exp(-0.5 * (GRID - mean[:, None]) ** 2) / np.sqrt(2 * np.pi)
                joint = prior[:, None] * density
                ratio = joint * prior.sum() / np.maximum(prior[:, None] * joint.sum(0), 1e-300)
                told += float((joint * np.log(np.maximum(ratio, 1e-300))).sum() * STEP)
                open_ -= float((prior * np.log(prior / prior.sum())).sum())
            found.append(told / open_)
        return np.array(found)

    def joint_leak(self, n: int = 100_000) -> float:
        """``1 - H(y | c, s) / H(y | c)``, a mean over drawn pictures of exact posteriors."""
        scores, c, y = self.draw(n, 99)
        given_c = np.stack([np.where(c == 1, np.log(p), np.log(1 - p)).sum(1) for p in self.chance], axis=1)
        given_s = np.stack(
            [-0.5 * ((scores - self.a * (2 * c - 1) - self.b * u) ** 2).sum(1) for u in self.pull], axis=1
        )
        entropies = []
        for log_p in (given_c, given_c + given_s):
            log_p = log_p - np.logaddexp.reduce(log_p, axis=1, keepdims=True)
            entropies.append(-log_p[np.arange(n), y].mean())
        return float(1 - entropies[1] / entropies[0])
