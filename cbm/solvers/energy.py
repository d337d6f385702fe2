"""Inference in an energy over concepts and class: Xu et al., "Energy-Based Concept Bottleneck Models", ICLR 2024.

    pi(c, y | x)  ~  exp( a_y(x) + sum_k c_k l_k(x) - E(c, y) )
    E(c, y)       =  < relu(p0 + sum_k c_k d_k), v_y >

with class scores a = -E_class, concept logits l (energy of absent minus energy of present) and the global energy E in
the form that its published network has once its constants are multiplied out: a hidden layer that is linear in the
concepts. Every method works on whole batches and answers for each image by itself: random numbers are drawn once and
used for all images, so neither the batch nor the order matters, and the same generator state gives the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from cbm.solvers.concept_blocks import NEVER, ConceptBlocks

Method = Literal["auto", "direct", "importance", "gibbs", "icm", "relaxed", "enumerate"]
METHODS: tuple[str, ...] = get_args(Method)
FEW_SAMPLES = 10.0  # effective samples below which importance sampling is not to be trusted
ENUMERABLE = 4096  # concept vectors; 12 binary concepts
SWEEPABLE = 128  # variables; a sweep of Gibbs sampling goes through them one by one
FEW_VARIABLES = 64  # of which more samples are drawn
LIKELY = 16  # classes that iterated conditional modes looks into
HIDDEN_AT_ONCE = 8_000_000  # numbers in the hidden layer at a time: 32 MB of float32


@dataclass(frozen=True)
class JointEnergy:
    """The global energy E(c, y).

    Attributes:
        steps: steps d ``[K, H]`` of the hidden layer, one per concept.
        origin: hidden layer p0 ``[H]`` without concepts.
        classes: class vectors v ``[M, H]``.
        blocks: the possible concept vectors.
    """

    steps: Tensor
    origin: Tensor
    classes: Tensor
    blocks: ConceptBlocks

    def hidden(self, concepts: Tensor) -> Tensor:
        """Concepts ``[..., K]``, possibly soft, to the hidden layer ``[..., H]`` before the rectifier."""
        return concepts.to(self.steps.dtype) @ self.steps + self.origin

    def __call__(self, concepts: Tensor) -> Tensor:
        """Concepts ``[..., K]`` to their energies ``[..., M]`` with every class."""
        return self.hidden(concepts).relu() @ self.classes.T

    def times(self, weight: float) -> JointEnergy:
        """The same energy, times ``weight``."""
        return replace(self, classes=weight * self.classes)


@dataclass(frozen=True)
class Posterior:
    """Inferred concepts and classes of B images.

    Attributes:
        class_probability: class probabilities ``[B, M]``.
        concept_probability: concept probabilities ``[B, K]``; exactly 0 or 1 for known concepts.
        classes: predicted class indices ``[B]``.
        concepts: predicted concepts ``[B, K]``, 0 or 1.
        energy: energy ``[B]`` of the predictions up to a constant per image: -a_y - sum c l + E(c, y).
        ess: effective number of samples ``[B]``; infinite if nothing was sampled.
    """

    class_probability: Tensor
    concept_probability: Tensor
    classes: Tensor
    concepts: Tensor
    energy: Tensor
    ess: Tensor


@dataclass(frozen=True)
class _Picture:
    """A batch of images with its evidence: class scores ``[B, M]``, value logits ``[B, blocks, V]``."""

    class_score: Tensor
    value_logit: Tensor
    joint: JointEnergy

    def energy(self, states: Tensor, classes: Tensor) -> Tensor:
        """``[B, L]`` of L decisions about each image, ``[B, L, blocks]`` and ``[B, L]``."""
        evidence = self.value_logit[:, None].expand(-1, states.shape[1], -1, -1).gather(-1, states[..., None])
        hidden = self.joint.hidden(self.joint.blocks.concepts(states)).relu()
        joint = (hidden * self.joint.classes[classes]).sum(-1)
        return joint - evidence.sum((-2, -1)) - self.class_score.gather(1, classes)


# class probability [B, M], value probability [B, blocks, V], effective samples [B], decisions (states, classes) or None
_Answer = tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor] | None]


@torch.no_grad()
def infer(
    class_score: Tensor,
    concept_logit: Tensor,
    joint: JointEnergy,
    *,
    method: Method = "auto",
    clamp: Tensor | None = None,
    samples: int | None = None,
    sweeps: int = 50,
    generator: torch.Generator | None = None,
    vectors: Tensor | None = None,
) -> Posterior:
    """Infer the concepts and the class of every image; some concepts may be known.

    - ``auto``: ``enumerate`` if there are at most 4,096 concept vectors, else ``importance``, and ``gibbs`` for images
      with fewer than 10 effective samples if there are at most 128 variables (with more, look at ``ess``).
    - ``direct``: every concept by its own evidence, the class by these concepts. Exact without a global energy.
    - ``importance``: concept vectors drawn by their own evidence (scrambled Sobol points), weighted by the energy.
    - ``gibbs``: 8 chains, each variable drawn given the others; the conditionals are averaged, not the draws.
    - ``icm``: the concept vector of lowest energy for each of the 16 likeliest classes, one variable at a time from the
      direct one, which the other classes keep.
    - ``relaxed``: mean field, by 100 steps of Adam from the direct readout.
    - ``enumerate``: exact, over all concept vectors (or over ``vectors``); decisions are the joint maximum.

    Args:
        class_score: class scores a ``[B, M]``; zeros to infer the class from the concepts alone.
        concept_logit: log-odds l ``[B, K]`` of the concepts.
        joint: global energy E.
        method: inference method, see above.
        clamp: known concepts ``[B, K]``: 1 present, 0 absent, NaN unknown.
        samples: number of samples of ``importance``; by default 1,024, or 256 for more than 64 variables.
        sweeps: number of sweeps of ``gibbs``, of which the first fifth is not counted.
        generator: random number generator; by default one with seed 0.
        vectors: the only concept vectors ``[U, K]`` that ``enumerate`` considers, e.g. those of the classes. If none
            agrees with the known concepts, those that agree best are used.

    Raises:
        ValueError: the method is unknown, a shape does not fit, known concepts contradict an exclusive group, or there
            are too many concept vectors to enumerate.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(METHODS)}")
    count, blocks = len(joint.steps), joint.blocks
    wanted = [(len(concept_logit), len(joint.classes)), (len(concept_logit), count)]
    if [tuple(class_score.shape), tuple(concept_logit.shape)] != wanted:
        raise ValueError(
            f"class_score {list(class_score.shape)} and concept_logit {list(concept_logit.shape)} do not fit; "
            f"expected [B, {len(joint.classes)}] and [B, {count}]"
        )
    if vectors is None and method in ("auto", "enumerate") and blocks.size <= ENUMERABLE:
        vectors = blocks.all_vectors()
    if vectors is not None and method == "auto":
        method = "enumerate"
    if vectors is None and method == "enumerate":
        raise ValueError(
            f"there are {blocks.size:.3g} concept vectors; expected at most {ENUMERABLE} to enumerate them"
        )
    generator = generator or torch.Generator().manual_seed(0)
    allowed = blocks.allowed.expand(len(concept_logit), -1, -1)
    if clamp is not None:
        allowed = blocks.consistent(clamp)
        if not bool(allowed.any(-1).all()):
            picture, block = (~allowed.any(-1)).nonzero()[0].tolist()
            raise ValueError(f"clamp of row {picture} contradicts itself among {blocks.describe(block)}")
    picture = _Picture(class_score, blocks.of_values(concept_logit).masked_fill(~allowed, NEVER), joint)

    solve: Callable[[_Picture], _Answer]
    if method == "enumerate":
        assert vectors is not None
        width, solve = len(vectors) * (len(joint.classes) + count), _enumerated(vectors, joint, clamp is not None)
    elif method in ("auto", "importance"):
        samples = samples or (1024 if len(blocks.values) <= FEW_VARIABLES else 256)
        width = samples * max(joint.steps.shape[1], blocks.values.numel())
        solve = _importance(blocks, samples, generator)
    elif method == "gibbs":
        width, solve = 8 * blocks.values.shape[1] * joint.steps.shape[1], _gibbs(joint, sweeps, generator)
    elif method == "icm":
        width, solve = LIKELY * blocks.values.shape[1] * joint.steps.shape[1], _icm
    else:
        width, solve = 4 * joint.steps.shape[1], _direct if method == "direct" else _relaxed
    rows = max(1, HIDDEN_AT_ONCE // width)
    chunks = zip(picture.class_score.split(rows), picture.value_logit.split(rows))
    parts = [_read(part, solve(part)) for part in (_Picture(*chunk, joint) for chunk in chunks)]
    found = Posterior(*(torch.cat(column) for column in zip(*parts)))
    if clamp is not None:
        known = ~clamp.isnan()
        found.concept_probability[known] = clamp[known].to(found.concept_probability.dtype)
    sweepable = len(blocks.values) <= SWEEPABLE
    if method == "auto" and sweepable and bool((weak := found.ess < FEW_SAMPLES).any()):
        better = infer(
            class_score[weak],
            concept_logit[weak],
            joint,
            method="gibbs",
            clamp=None if clamp is None else clamp[weak],
            sweeps=sweeps,
            generator=generator,
        )
        for name in Posterior.__dataclass_fields__:
            getattr(found, name)[weak] = getattr(better, name)
    return found


def _read(picture: _Picture, answer: _Answer) -> tuple[Tensor, ...]:
    """The fields of a ``Posterior``."""
    class_probability, value_probability, ess, decided = answer
    states, classes = decided or (value_probability.argmax(-1), class_probability.argmax(-1))
    blocks = picture.joint.blocks
    energy = picture.energy(states[:, None], classes[:, None])[:, 0]
    return class_probability, blocks.of_concepts(value_probability), classes, blocks.concepts(states), energy, ess


def _exact(picture: _Picture) -> Tensor:
    """The number of effective samples of a method that does not sample."""
    return torch.full_like(picture.class_score[:, 0], math.inf)


def _direct(picture: _Picture) -> _Answer:
    value_probability = picture.value_logit.softmax(-1)
    concepts = picture.joint.blocks.concepts(value_probability.argmax(-1))
    return (picture.class_score - picture.joint(concepts)).softmax(-1), value_probability, _exact(picture), None


def _enumerated(vectors: Tensor, joint: JointEnergy, clamped: bool) -> Callable[[_Picture], _Answer]:
    blocks = joint.blocks
    states = blocks.states(vectors)  # [U, blocks]
    chosen = torch.nn.functional.one_hot(states, blocks.values.shape[1]).to(joint.steps.dtype)  # [U, blocks, V]
    energy = joint(vectors)  # [U, M]

    def solve(picture: _Picture) -> _Answer:
        evidence = picture.value_logit.flatten(1) @ chosen.flatten(1).T  # [B, U]
        score = evidence[:, :, None] + picture.class_score[:, None] - energy  # [B, U, M]
        flat = score.flatten(1)
        best = flat.argmax(1)
        classes = best % energy.shape[1]
        probability = flat.softmax(1).view_as(score)
        value_probability = (probability.sum(2) @ chosen.flatten(1)).view(len(flat), *chosen.shape[1:])
        decided = (states[best // energy.shape[1]], classes)
        if clamped:  # a vector that only nearly agrees is read with what is known put in
            free = picture.value_logit > NEVER
            value_probability = value_probability * free
            empty = value_probability.sum(-1, keepdim=True) == 0
            value_probability = torch.where(empty, free.to(value_probability), value_probability)
            value_probability = value_probability / value_probability.sum(-1, keepdim=True)
            agrees = free.gather(-1, decided[0][..., None])[..., 0]
            decided = (torch.where(agrees, decided[0], value_probability.argmax(-1)), classes)
        return probability.sum(1), value_probability, _exact(picture), decided

    return solve


def draw_states(value_probability: Tensor, uniform: Tensor) -> Tensor:
    """Value numbers ``[..., blocks]`` by inverting the distribution ``[..., blocks, V]`` at ``uniform`` in [0, 1)."""
    cumulative = value_probability.cumsum(-1)
    uniform = uniform.clamp(max=1 - 2**-24)  # float32 points may have been rounded up to 1
    return (uniform[..., None] * cumulative[..., -1:] >= cumulative).sum(-1)


def _importance(blocks: ConceptBlocks, samples: int, generator: torch.Generator) -> Callable[[_Picture], _Answer]:
    seed = int(torch.randint(2**31, (), generator=generator))
    points = torch.quasirandom.SobolEngine(len(blocks.values), scramble=True, seed=seed).draw(samples)

    def solve(picture: _Picture) -> _Answer:
        proposal = picture.value_logit.softmax(-1)[:, None]  # [B, 1, blocks, V]
        states = draw_states(proposal, points.to(proposal.device))  # [B, S, blocks]
        concepts = blocks.concepts(states)  # [B, S, K]
        score = picture.class_score[:, None] - picture.joint(concepts)  # [B, S, M]
        by_class = score.logsumexp(1)
        weight = score.logsumexp(2).softmax(1)  # [B, S]
        present = blocks.of_values((weight[:, None] @ concepts.to(weight.dtype))[:, 0]) * blocks.allowed
        none = blocks.allowed & (blocks.values == blocks.count)
        value_probability = torch.where(none, (1 - present.sum(-1, keepdim=True)).clamp(min=0), present)
        return by_class.softmax(1), value_probability, 1 / weight.square().sum(1), None

    return solve


def gibbs_sweeps(
    class_score: Tensor,
    value_logit: Tensor,
    joint: JointEnergy,
    *,
    chains: int,
    sweeps: int,
    generator: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Draw concepts and class in turn, each given the others, in all chains of all images at once.

    Args:
        class_score: class scores ``[B, M]``.
        value_logit: log-odds ``[B, blocks, V]`` of the values.
        joint: global energy E.
        chains: number of chains per image.
        sweeps: number of sweeps, all of which are returned.
        generator: random number generator; a chain uses the same random numbers for all images.

    Yields:
        After every sweep: states ``[B, chains, blocks]``, the conditional probabilities they were drawn from
        ``[B, chains, blocks, V]``, and those of the class given the states ``[B, chains, M]``.
    """
    blocks = joint.blocks
    count, device = len(blocks.values), class_score.device
    value_steps = blocks.of_values(joint.steps.T).permute(1, 2, 0)  # [blocks, V, H]

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(device)

    states = draw_states(value_logit.softmax(-1)[:, None], uniform(chains, count))
    hidden = joint.hidden(blocks.concepts(states))  # [B, chains, H]
    probability = value_logit.new_empty(*states.shape, value_logit.shape[-1])
    for _ in range(sweeps):
        draws = uniform(count + 1, chains)
        of_class = (class_score[:, None] - hidden.relu() @ joint.classes.T).softmax(-1)
        classes = joint.classes[draw_states(of_class[..., None, :], draws[-1][:, None])[..., 0]]  # [B, chains, H]
        for block in range(count):
            rest = hidden - value_steps[block][states[..., block]]
            tried = rest[..., None, :] + value_steps[block]  # [B, chains, V, H]
            energy = (tried.relu_() @ classes[..., None])[..., 0]
            probability[..., block, :] = (value_logit[:, None, block] - energy).softmax(-1)
            drawn = draw_states(probability[..., block : block + 1, :], draws[block][:, None])[..., 0]
            states[..., block] = drawn
            hidden = rest + value_steps[block][drawn]
        hidden = joint.hidden(blocks.concepts(states))  # rounding does not add up over the sweeps
        yield states, probability, (class_score[:, None] - hidden.relu() @ joint.classes.T).softmax(-1)


def _gibbs(joint: JointEnergy, sweeps: int, generator: torch.Generator) -> Callable[[_Picture], _Answer]:
    seed, chains = int(torch.randint(2**31, (), generator=generator)), 8
    skipped = sweeps // 5

    def solve(picture: _Picture) -> _Answer:
        same = torch.Generator().manual_seed(seed)  # every chunk of pictures sees the same numbers
        class_probability = torch.zeros_like(picture.class_score)
        value_probability = torch.zeros_like(picture.value_logit)
        every = gibbs_sweeps(
            picture.class_score, picture.value_logit, joint, chains=chains, sweeps=sweeps, generator=same
        )
        for number, (_, values, classes) in enumerate(every):
            if number >= skipped:
                class_probability += classes.mean(1)
                value_probability += values.mean(1)
        kept = sweeps - skipped
        ess = torch.full_like(picture.class_score[:, 0], float(chains * kept))
        return class_probability / kept, value_probability / kept, ess, None

    return solve


def _icm(picture: _Picture) -> _Answer:
    """Iterated conditional modes, for the likeliest classes at once; the energy of no class ever rises."""
    joint, blocks = picture.joint, picture.joint.blocks
    value_steps = blocks.of_values(joint.steps.T).permute(1, 2, 0)
    start = picture.value_logit.argmax(-1)  # [B, blocks]
    score = picture.class_score - joint(blocks.concepts(start))  # [B, M], all with the same concepts
    likely = score.topk(min(LIKELY, score.shape[1])).indices.sort().values  # [B, L]
    states = start[:, None].repeat(1, likely.shape[1], 1)  # [B, L, blocks]
    classes = joint.classes[likely][..., None]  # [B, L, H, 1]
    moved = True
    while moved:
        before = states.clone()
        hidden = joint.hidden(blocks.concepts(states))  # [B, L, H]
        for block in range(len(blocks.values)):
            now = states[..., block]
            rest = hidden - value_steps[block][now]
            energy = ((rest[..., None, :] + value_steps[block]).relu_() @ classes)[..., 0]  # [B, L, V]
            energy = energy - picture.value_logit[:, None, block]
            here = energy.gather(-1, now[..., None])[..., 0]
            better = energy.amin(-1) < here - 1e-5 * here.abs().clamp(min=1)  # a gain that is not rounding
            states[..., block] = torch.where(better, energy.argmin(-1), now)
            hidden = rest + value_steps[block][states[..., block]]
        moved = not torch.equal(before, states)
    reached = picture.energy(states, likely)  # [B, L]
    best = reached.argmin(1)
    row = torch.arange(len(states), device=states.device)
    unmoved = picture.value_logit.gather(-1, start[..., None]).sum((1, 2))  # evidence of the start
    class_score = (score + unmoved[:, None]).scatter(1, likely, -reached)
    decided = states[row, best]
    value_probability = torch.nn.functional.one_hot(decided, picture.value_logit.shape[-1]).to(reached.dtype)
    return class_score.softmax(1), value_probability, _exact(picture), (decided, likely[row, best])


def _free_energy(picture: _Picture, value_parameter: Tensor, class_parameter: Tensor) -> Tensor:
    """Mean-field free energy ``[B]``: mean energy minus entropy, the hidden layer read at the mean concepts."""
    log_q, log_p = value_parameter.log_softmax(-1), class_parameter.log_softmax(-1)
    q, p = log_q.exp(), log_p.exp()
    joint = picture.joint(picture.joint.blocks.of_concepts(q))
    entropy = -(q * log_q).sum((1, 2)) - (p * log_p).sum(1)
    return (p * (joint - picture.class_score)).sum(1) - (q * picture.value_logit).sum((1, 2)) - entropy


def _relaxed(picture: _Picture) -> _Answer:
    start = _direct(picture)[0].clamp(min=1e-6).log()
    parameters = [picture.value_logit.clone().requires_grad_(), start.requires_grad_()]
    optimizer = torch.optim.Adam(parameters, lr=0.1)
    with torch.enable_grad():
        for _ in range(100):
            optimizer.zero_grad()
            _free_energy(picture, *parameters).sum().backward()
            optimizer.step()
    values, classes = (p.detach() for p in parameters)
    return classes.softmax(-1), values.softmax(-1), _exact(picture), None
