"""``Autoencoder``: a dictionary of units in training, of which every picture uses a few.

    x~ = (x - mean) * scale             pictures from their mean, in units of their root mean square distance from it
    h  = gate((x~ - b) W^T + c)         weights of the units [N, K], most of them zero
    x^ = h D + b                        what they say of the picture; the rows of D, the atoms, have length 1

The gates, by ``kind``:

- ``topk``: the k largest positive (Gao et al., "Scaling and evaluating sparse autoencoders", ICLR 2025);
- ``matryoshka``: the same; the first units must reconstruct by themselves (Bussmann et al., "Learning Multi-Level
  Features with Matryoshka SAEs", ICML 2025);
- ``archetypal``: the same; every atom is a mixture of k-means centres of the pictures (Fel et al., "Archetypal SAE",
  ICML 2025), of the nearest ``NEIGHBOURS`` of its own centre here, so that the atoms lie in the pictures' hull;
- ``batch_topk``: the k B largest of a batch of B pictures (Bussmann, Leask, Nanda, "BatchTopK Sparse Autoencoders",
  2024); afterwards the mean of the smallest that passed is a threshold for all, so that a picture's code does not
  depend on the others;
- ``relu``: all positive, with an l1 penalty (Bricken et al., "Towards Monosemanticity", 2023);
- ``jumprelu``: those above a learned threshold each, with a penalty on their number (Rajamanoharan et al., "Jumping
  Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse Autoencoders", 2024).

The penalty of the last two is steered so that k units fire on average: all kinds aim at the same k.

At first more than k units may fire; their number falls to k over the first half of the training. From a random start
the k units of a picture are chosen by chance, and most dictionaries stay where that leads them.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, normalize

from cbm.kernels import topk_concepts
from cbm.layers.codes import UnitCode

KINDS = ("topk", "batch_topk", "jumprelu", "relu", "matryoshka", "archetypal")
FIXED = ("topk", "matryoshka", "archetypal")
"""Kinds with exactly so many units in every picture."""
NEIGHBOURS = 32
"""Centres that an archetypal atom mixes."""
OWN_SHARE = 0.9
"""Share of an archetypal atom's own centre at the start."""
FIRST_THRESHOLD = 0.03


class Autoencoder(nn.Module):
    """A dictionary in training.

    Args:
        decoder: atoms ``[K, D]`` at the start, of any length; centres ``[M, D]`` from which ``archetypal`` atoms are
            mixed, of which the first K are the atoms' own.
        count: number of units K.
        k: number of units per picture.
        kind: one of ``KINDS``.
        mean: mean feature ``[D]``.
        scale: factor on what is away from the mean.
        first_k: number of units per picture at first; k by default.
        settle: number of training steps after which it is k.

    Attributes:
        step: number of training steps so far.
        silent: number of pictures ``[K]`` since a unit last fired.
        threshold: threshold ``[K]`` of ``batch_topk``: the same for all units.
        penalty: penalty of ``relu`` and ``jumprelu``.
        steered: whether the penalty follows the number of units that fire.
        replacement: dead units and the pictures ``[R, D]`` that they are to start from, until the optimizer does it.

    Raises:
        ValueError: an unknown kind.
    """

    mean: Tensor
    scale: Tensor
    step: Tensor
    silent: Tensor
    threshold: Tensor
    penalty: Tensor
    centres: Tensor
    nearest: Tensor

    def __init__(
        self,
        decoder: Tensor,
        count: int,
        k: int,
        kind: str,
        mean: Tensor,
        scale: float,
        first_k: int | None = None,
        settle: int = 0,
    ):
        super().__init__()
        self.first_k, self.settle = k if first_k is None else first_k, settle
        if kind not in KINDS:
            raise ValueError(f"kind is '{kind}'; expected one of {', '.join(KINDS)}")
        self.kind, self.k = kind, k
        unit = normalize(decoder.float(), dim=1)
        self.decoder: nn.Parameter | None = None
        if kind == "archetypal":
            nearest = topk_concepts(unit[:count], unit, min(NEIGHBOURS, len(unit)))[1]
            nearest[:, 0] = torch.arange(count)  # its own centre, also where another one is its copy
            shares = torch.full(nearest.shape, (1 - OWN_SHARE) / max(1, nearest.shape[1] - 1))
            shares[:, 0] = OWN_SHARE
            self.register_buffer("centres", decoder.float().clone())
            self.register_buffer("nearest", nearest)
            self.shares = nn.Parameter(shares.log())
        else:
            self.decoder = nn.Parameter(unit[:count].clone())
        self.encoder = nn.Parameter(self.atoms().detach().clone())
        self.offset = nn.Parameter(torch.zeros(count))
        self.bias = nn.Parameter(torch.zeros(decoder.shape[1]))
        if kind == "jumprelu":
            self.log_threshold = nn.Parameter(torch.full((count,), FIRST_THRESHOLD).log())
        self.register_buffer("mean", mean.float().clone())
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.register_buffer("step", torch.tensor(0))
        self.register_buffer("silent", torch.zeros(count, dtype=torch.long))
        self.register_buffer("threshold", torch.full((count,), -1.0))
        self.register_buffer("penalty", torch.tensor(1e-3))
        self.steered = kind in ("relu", "jumprelu")
        self.replacement: tuple[Tensor, Tensor] | None = None

    def fix_penalty(self, value: float) -> None:
        """Keep the penalty of ``relu`` and ``jumprelu`` at a value, instead of steering it."""
        self.penalty.fill_(value)
        self.steered = False

    def __len__(self) -> int:
        return len(self.encoder)

    def atoms(self) -> Tensor:
        """The atoms ``[K, D]``, of length 1."""
        return normalize(self.mixtures(), dim=1) if self.decoder is None else self.decoder

    def mixtures(self) -> Tensor:
        """The points ``[K, D]`` of the centres' hull in whose directions archetypal atoms lie."""
        return embedding_bag(self.nearest, self.centres, per_sample_weights=self.shares.softmax(dim=1), mode="sum")

    def away(self, x: Tensor) -> Tensor:
        """Pictures ``[N, D]`` from the mean, in units of their distance from it."""
        return (x.float() - self.mean) * self.scale

    def scores(self, away: Tensor) -> Tensor:
        """Weights ``[N, K]`` before the gate."""
        return (away - self.bias) @ self.encoder.T + self.offset

    @property
    def now(self) -> int:
        """How many units of a picture may fire: k, or more while training begins."""
        if not self.training or self.settle <= 0:
            return min(self.k, len(self))
        left = max(0.0, 1 - int(self.step) / self.settle)
        return min(round(self.k + left * (self.first_k - self.k)), len(self))

    def strongest(self, away: Tensor) -> tuple[Tensor, Tensor]:
        """The largest positive weights of every picture and their units, ``[N, now]`` each; 0 where fewer are."""
        values, units = topk_concepts(away - self.bias, self.encoder, self.now, beta=self.offset)
        return values.clamp(min=0), units

    def fixed(self) -> Tensor:
        """Threshold ``[K]`` of ``jumprelu``."""
        return self.log_threshold.exp()

    def code(self) -> UnitCode:
        """The trained units as an activation of features x, with atoms and threshold in their units; its ``typical``
        weights are still 0. Its directions are the rows of ``encoder``."""
        scale = self.scale
        offset = self.encoder @ self.mean + (self.encoder @ self.bias - self.offset) / scale
        threshold = torch.zeros_like(offset)
        if self.kind == "jumprelu":
            threshold = self.fixed() / scale
        if self.kind == "batch_topk":
            threshold = self.threshold.clamp(min=0) / scale
        k = self.k if self.kind in FIXED else 0
        mean = self.mean + self.bias / scale
        typical, atoms = torch.zeros_like(offset), self.atoms().detach()
        return UnitCode(offset.detach(), mean.detach(), typical, atoms, k, threshold.detach())


class Dictionaries(nn.Module):
    """Dictionaries that are trained side by side from different starts, to see which of their units are found again.

    Args:
        each: the dictionaries; the first is the one that is used.
    """

    def __init__(self, each: Iterable[Autoencoder]):
        super().__init__()
        self.each = nn.ModuleList(each)

    def __iter__(self) -> Iterator[Autoencoder]:
        return iter(self.each)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """What the first dictionary makes of features ``[N, D]``: their reconstructions."""
        first = next(iter(self))
        values, units = first.strongest(first.away(x))
        said = embedding_bag(units, first.atoms(), per_sample_weights=values, mode="sum") + first.bias
        return first.mean + said / first.scale
