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
        dim: D, width of the features.
        num_classes: M.
        blocks: which concept vectors there are.
        hidden: H.
        dropout: on both projections of an image, while training.
        mean: ``[D]`` taken from the features.
        std: ``[D]`` that they are divided by.
        vectors: ``[U, K]`` the only concept vectors there are, where every class has one of its own; or None.

    Attributes:
        class_weight: 0 lets the class be told from the concepts alone (strict); 1 lets it be seen too (leaky).
        concept_weight: of the concept energies at inference.
        joint_weight: of the global energy at inference.
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
        self, dim: int, num_classes: int, blocks: ConceptBlocks, *, hidden: int = 256, dropout: float = 0.2,
        mean: Tensor | None = None, std: Tensor | None = None, vectors: Tensor | None = None,
    ):  # fmt: skip
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
        """Which concept vectors there are."""
        return ConceptBlocks(len(self.steps), self.values, self.allowed)

    def class_scores(self, x: Tensor) -> Tensor:
        """``-E_class`` but for a constant of the image: features ``[B, D]`` to ``[B, M]``."""
        seen = self.dropout(self.to_class((x - self.mean) / self.std)).relu()
        return -(seen * self.class_scorer) @ normalize(self.class_table, dim=1).T

    def concept_logits(self, x: Tensor) -> Tensor:
        """Energy of absent minus energy of present, ``[B, K]``: the log-odds of a concept by its own evidence."""
        seen = self.dropout(self.to_concept((x - self.mean) / self.std)).relu()
        absent, present = normalize(self.concept_table, dim=2).unbind(1)
        return seen @ (self.concept_scorer * (absent - present)).T

    def joint(self) -> JointEnergy:
        """``E_global``, but for its constant."""
        classes = self.joint_scorer * (1 + normalize(self.class_table, dim=1))
        return JointEnergy(self.steps, self.origin, classes, self.blocks)

    @torch.no_grad()
    def infer(
        self, x: Tensor, *, method: Method = "auto", clamp: Tensor | None = None,
        generator: torch.Generator | None = None, samples: int | None = None, sweeps: int = 50,
        leaky: bool | None = None,
    ) -> Posterior:  # fmt: skip
        """Concepts and class of every image, some concepts possibly known.

        Args:
            x: ``[B, D]`` unit-norm features.
            method: see ``cbm.solvers.energy.infer``, also for the settings not named here.
            clamp: ``[B, K]`` 1 present, 0 absent, NaN to be inferred.
            generator: of the random numbers; without one the same call gives the same answer.
            samples: of importance sampling; by default 1,024, of more than 64 variables 256.
            sweeps: of Gibbs sampling.
            leaky: whether the class is seen in the image too, past the concepts; by default ``class_weight`` says.
        """
        seen = self.class_weight if leaky is None else float(leaky)
        return infer(
            seen * self.class_scores(x), self.concept_weight * self.concept_logits(x),
            self.joint().times(float(self.joint_weight)), method=method, clamp=clamp, generator=generator,
            samples=samples, sweeps=sweeps,
            vectors=self.vectors if method in ("auto", "enumerate") else None,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Logarithm of p(y | x), ``[B, M]``."""
        return self.infer(x).class_probability.clamp(min=1e-30).log()


class ReleasedEnergyBottleneck(EnergyBottleneck):
    """The same energies, read as the published code reads them (``cbm.solvers.released_energy``), in its batches."""

    @torch.no_grad()
    def infer(
        self, x: Tensor, *, method: Method = "auto", clamp: Tensor | None = None,
        generator: torch.Generator | None = None, samples: int | None = None, sweeps: int = 50,
        leaky: bool | None = None,
    ) -> Posterior:  # fmt: skip
        """The published loop by default, which nothing but ``clamp`` concerns; any other ``method`` is as above."""
        if method != "auto":
            return super().infer(
                x, method=method, clamp=clamp, generator=generator, samples=samples, sweeps=sweeps, leaky=leaky
            )
        clamps = x.new_full((len(x), len(self.steps)), float("nan")) if clamp is None else clamp
        parts = []
        for picture, known in zip(x.split(BATCH), clamps.split(BATCH)):
            parts.append(released_inference(self.released_energies(picture), None if clamp is None else known)[:2])
        classes, concepts = (torch.cat(column) for column in zip(*parts))
        decided, chosen = concepts.round(), classes.argmax(dim=1)
        energy = (self.joint()(decided) - self.class_scores(x)).gather(1, chosen[:, None])[:, 0]
        energy = energy - (decided * self.concept_logits(x)).sum(dim=1)
        return Posterior(classes, concepts, chosen, decided, energy, torch.full_like(energy, torch.inf))

    def released_energies(self, x: Tensor) -> ReleasedEnergies:
        """What the loop needs to know of images ``[B, D]``."""
        z = (x - self.mean) / self.std
        classes, concepts, joint = self.class_table, self.concept_table, self.joint()
        return ReleasedEnergies(
            (self.to_class(z).relu() * self.class_scorer) @ classes.T,
            classes @ classes.T,
            torch.einsum("bh,kh,kjh->bkj", self.to_concept(z).relu(), self.concept_scorer, concepts),
            concepts @ concepts.transpose(1, 2),
            lambda c: (joint.hidden(c).relu() * self.joint_scorer) @ classes.T,
        )
