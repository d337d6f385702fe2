"""``EnergyBottleneck``: concepts, class and image joined by three energies."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from cbm.solvers.concept_blocks import ConceptBlocks
from cbm.solvers.energy import JointEnergy, Method, Posterior, infer
from cbm.solvers.released_energy import BATCH, ReleasedEnergies, released_inference


class EnergyBottleneck(nn.Module):
    """Xu et al., "Energy-Based Concept Bottleneck Models", ICLR 2024, on frozen features.

    With u' = u / |u|, r = relu(W z + b) of a standardised image z, c a 0/1 vector and y a class:

        E_class(x, y)   = const(x) + < w_y . r_class, u'_y >
        E_concept(x, c) = const(x) - sum_k c_k l_k(x),   l_k = < r_concept, w_k . (v'_k0 - v'_k1) >
        E_global(c, y)  = < w_g . relu(p0 + sum_k c_k d_k), 1 + u'_y > + const

    These are the published networks, whose interaction is relu(a + a . u'): entries of a unit vector are at least -1,
    so it is relu(a) . (1 + u'), and everything is linear after the first layer. d and p0 stand for the published
    projection of concatenated concept vectors (K H^2 parameters that come down to K H). An index of v and of d means
    the same state, which the published code crosses in the global energy.

        p(c, y | x)  ~  exp( -class_weight E_class - concept_weight E_concept - joint_weight E_global )

    Args:
        dim: width D of the features.
        num_classes: number of classes M.
        blocks: the possible concept vectors.
        hidden: width H of the hidden layers.
        dropout: dropout rate of both projections of an image during training.
        mean: mean ``[D]`` that is subtracted from the features.
        std: standard deviations ``[D]`` that the features are divided by.
        vectors: the only concept vectors ``[U, K]`` that occur, if every class has one of its own; or None.

    Attributes:
        class_weight: weight of the class energy: 0 infers the class from the concepts alone (strict), 1 also from the
            image (leaky).
        concept_weight: weight of the concept energies at inference.
        joint_weight: weight of the global energy at inference.
    """

    mean: Tensor
    std: Tensor
    values: Tensor
    allowed: Tensor
    class_weight: Tensor
    concept_weight: Tensor
    joint_weight: Tensor
    vectors: Tensor | None

    def __init__(
        self,
        dim: int,
        num_classes: int,
        blocks: ConceptBlocks,
        *,
        hidden: int = 256,
        dropout: float = 0.2,
        mean: Tensor | None = None,
        std: Tensor | None = None,
        vectors: Tensor | None = None,
    ):
        super().__init__()
        count, scale = blocks.count, hidden**-0.5
        self.register_buffer("mean", torch.zeros(dim) if mean is None else mean.clone())
        self.register_buffer("std", torch.ones(dim) if std is None else std.clone())
        self.register_buffer("values", blocks.values.clone())
        self.register_buffer("allowed", blocks.allowed.clone())
        self.register_buffer("vectors", None if vectors is None else vectors.clone())
        for name in ("class_weight", "concept_weight", "joint_weight"):
            self.register_buffer(name, torch.tensor(0.0 if name == "class_weight" else 1.0))
        self.to_class, self.to_concept = nn.Linear(dim, hidden), nn.Linear(dim, hidden)
        self.class_table = nn.Parameter(torch.randn(num_classes, hidden))
        self.concept_table = nn.Parameter(torch.randn(count, 2, hidden))
        self.class_scorer = nn.Parameter(torch.empty(hidden).uniform_(-scale, scale))
        self.concept_scorer = nn.Parameter(torch.empty(count, hidden).uniform_(-scale, scale))
        self.joint_scorer = nn.Parameter(torch.empty(hidden).uniform_(-scale, scale))
        self.steps = nn.Parameter(torch.randn(count, hidden) * (2 / (3 * count)) ** 0.5)
        self.origin = nn.Parameter(torch.randn(hidden) * 3**-0.5)
        self.dropout = nn.Dropout(dropout)

    @property
    def blocks(self) -> ConceptBlocks:
        """The possible concept vectors."""
        return ConceptBlocks(len(self.steps), self.values, self.allowed)

    def class_scores(self, x: Tensor) -> Tensor:
        """``-E_class`` up to a constant per image: features ``[B, D]`` to scores ``[B, M]``."""
        seen = self.dropout(self.to_class((x - self.mean) / self.std)).relu()
        return -(seen * self.class_scorer) @ normalize(self.class_table, dim=1).T

    def concept_logits(self, x: Tensor) -> Tensor:
        """Log-odds ``[B, K]`` of every concept by its own evidence: energy of absent minus energy of present."""
        seen = self.dropout(self.to_concept((x - self.mean) / self.std)).relu()
        absent, present = normalize(self.concept_table, dim=2).unbind(1)
        return seen @ (self.concept_scorer * (absent - present)).T

    def joint(self) -> JointEnergy:
        """``E_global`` up to a constant."""
        classes = self.joint_scorer * (1 + normalize(self.class_table, dim=1))
        return JointEnergy(self.steps, self.origin, classes, self.blocks)

    @torch.no_grad()
    def infer(
        self,
        x: Tensor,
        *,
        method: Method = "auto",
        clamp: Tensor | None = None,
        generator: torch.Generator | None = None,
        samples: int | None = None,
        sweeps: int = 50,
        leaky: bool | None = None,
    ) -> Posterior:
        """Infer the concepts and the class of every image; some concepts may be known.

        Args:
            x: unit-norm features ``[B, D]``.
            method: inference method, see ``cbm.solvers.energy.infer``.
            clamp: known concepts ``[B, K]``: 1 present, 0 absent, NaN if unknown.
            generator: random number generator; by default one with a fixed seed.
            samples: number of samples of importance sampling; by default 1,024, or 256 for more than 64 variables.
            sweeps: number of sweeps of Gibbs sampling.
            leaky: whether the class is also inferred from the image, past the concepts; by default according to
                ``class_weight``.

        Raises:
            ValueError: the method is unknown, or the known concepts contradict each other.
        """
        seen = self.class_weight if leaky is None else float(leaky)
        return infer(
            seen * self.class_scores(x),
            self.concept_weight * self.concept_logits(x),
            self.joint().times(float(self.joint_weight)),
            method=method,
            clamp=clamp,
            generator=generator,
            samples=samples,
            sweeps=sweeps,
            vectors=self.vectors if method in ("auto", "enumerate") else None,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Logarithm of p(y | x), ``[B, M]``, of features ``[B, D]``."""
        return self.infer(x).class_probability.clamp(min=1e-30).log()


class ReleasedEnergyBottleneck(EnergyBottleneck):
    """The same energies, read as the published code reads them (``cbm.solvers.released_energy``), in its batches."""

    @torch.no_grad()
    def infer(
        self,
        x: Tensor,
        *,
        method: Method = "auto",
        clamp: Tensor | None = None,
        generator: torch.Generator | None = None,
        samples: int | None = None,
        sweeps: int = 50,
        leaky: bool | None = None,
    ) -> Posterior:
        """Infer by the published loop, unless another ``method`` is named.

        Arguments as for ``EnergyBottleneck.infer``; the loop uses ``x``, ``clamp`` and ``leaky``. By default it does as
        published: the class is also inferred from the image as long as ``clamp`` is None. ``leaky=False`` infers it
        from the concepts alone.
        """
        if method != "auto":
            return super().infer(
                x, method=method, clamp=clamp, generator=generator, samples=samples, sweeps=sweeps, leaky=leaky
            )
        clamps = x.new_full((len(x), len(self.steps)), float("nan")) if clamp is None else clamp
        parts = []
        for picture, known in zip(x.split(BATCH), clamps.split(BATCH)):
            told = None if clamp is None else known
            parts.append(released_inference(self.released_energies(picture), told, strict=leaky is False)[:2])
        classes, concepts = (torch.cat(column) for column in zip(*parts))
        decided, chosen = concepts.round(), classes.argmax(dim=1)
        energy = (self.joint()(decided) - self.class_scores(x)).gather(1, chosen[:, None])[:, 0]
        energy = energy - (decided * self.concept_logits(x)).sum(dim=1)
        return Posterior(classes, concepts, chosen, decided, energy, torch.full_like(energy, torch.inf))

    def released_energies(self, x: Tensor) -> ReleasedEnergies:
        """The inner products that the published loop needs, of features ``[B, D]``."""
        z = (x - self.mean) / self.std
        classes, concepts, joint = self.class_table, self.concept_table, self.joint()
        return ReleasedEnergies(
            (self.to_class(z).relu() * self.class_scorer) @ classes.T,
            classes @ classes.T,
            torch.einsum("bh,kh,kjh->bkj", self.to_concept(z).relu(), self.concept_scorer, concepts),
            concepts @ concepts.transpose(1, 2),
            lambda c: (joint.hidden(c).relu() * self.joint_scorer) @ classes.T,
        )
