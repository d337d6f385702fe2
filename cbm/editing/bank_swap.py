"""Exchange the bank of a trained model: the same decisions with other concepts, by one linear solve.

A linear bottleneck decides by ``x (W T)^T + b``. Under new directions T' the head that keeps its decisions is

    W' = argmin  |(W' T' - W T) L|^2  +  r |W' - W_0|^2,      L L^T = S, the covariance of the features,

in closed form: with B = T' L it is ``W_0 + (W T L - W_0 B) (B^T B + r I)^-1 B^T``, a D x D system at most, for any
number of concepts. The bias makes up for the difference of the means. Weights may become negative, and rows need not
sum to one, even if they did before.

With as many directions as the features have dimensions, T' can repeat every linear decision, whatever its phrases mean;
random directions can too. So the share of decisions that equally many random directions keep is reported beside it, and
for a translation also the share that is kept if the weights stay as they are.
"""

import logging
from dataclasses import dataclass

import torch
from torch import Tensor

from cbm.concepts.bank import ConceptBank
from cbm.concepts.control import apply_control
from cbm.errors import UserError
from cbm.layers import ConceptBottleneck, LinearHead, decide
from cbm.layers.link import same_link

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kept:
    """How well a new head repeats the decisions, on images that it was not fitted on.

    Attributes:
        agreement: share of images with the same predicted class.
        r2: coefficient of determination of the logits, after subtracting each class's mean.
        class_r2: coefficient of determination ``[C]`` of every class alone.
    """

    agreement: float
    r2: float
    class_r2: Tensor

    def __str__(self) -> str:
        return f"{self.agreement:.1%} of decisions, R2 of the logits {self.r2:.3f}"


@dataclass(frozen=True)
class BankSwap:
    """The result of exchanging a model's bank.

    Attributes:
        bank: name of the new bank.
        kept: agreement of the decisions with the new bank.
        random: agreement with equally many random directions.
        unfitted: agreement with a translated bank under the old weights; None without a translation.
    """

    bank: str
    kept: Kept
    random: Kept
    unfitted: Kept | None = None

    def __str__(self) -> str:
        line = f"concepts replaced by '{self.bank}': kept {self.kept}; random directions keep {self.random}"
        return line if self.unfitted is None else f"{line}; under the old weights {self.unfitted}"


def refit_head(
    model: ConceptBottleneck, directions: Tensor, x: Tensor, *, ridge: float, start: Tensor | None = None
) -> ConceptBottleneck:
    """Fit a head on other directions that decides as ``model`` does on the given images.

    Args:
        model: a linear bottleneck; its residual is not changed.
        directions: directions ``[K', D]`` of the new concepts.
        x: unit-norm features ``[M, D]``.
        ridge: strength r of the penalty, in units of the mean variance of a new concept's score.
        start: weights ``[C, K']`` towards which the penalty pulls; zeros by default.
    """
    weights, old, new = model.weights().double(), model.concepts.double(), directions.double()
    mean = x.double().mean(dim=0)
    values, axes = torch.linalg.eigh((x.double() - mean).T @ (x.double() - mean) / len(x))
    root = axes * values.clamp(min=0).sqrt()  # L [D, D]
    seen = new @ root  # B [K', D]
    first = weights.new_zeros(len(weights), len(new)) if start is None else start.double()
    missing = weights @ old @ root - first @ seen  # [C, D]
    few = len(new) <= len(root)  # B (B^T B + r I)^-1 = (B B^T + r I)^-1 B: the smaller system
    gram = seen @ seen.T if few else seen.T @ seen
    gram += ridge * float(gram.trace()) / len(new) * torch.eye(len(gram), dtype=gram.dtype)
    change = torch.linalg.solve(gram, seen @ missing.T) if few else seen @ torch.linalg.solve(gram, missing.T)
    fitted = first + change.T
    bias = model.biases().double() + (weights @ (old @ mean)) - fitted @ (new @ mean)
    made = ConceptBottleneck(directions.float(), LinearHead(fitted.float(), bias.float())).requires_grad_(False)
    made.residual = model.residual
    same_link(model, made)
    return made.calibrate(x).train(model.training)


def kept(model: ConceptBottleneck, directions: Tensor, x: Tensor, *, ridge: float, start: Tensor | None = None) -> Kept:
    """Agreement of refitted heads: fit on one half of the images, compare on the other, both ways round.

    Args:
        model: a linear bottleneck.
        directions: directions ``[K', D]`` of the new concepts.
        x: unit-norm features ``[M, D]``.
        ridge: strength of the penalty, see ``refit_head``.
        start: weights ``[C, K']`` towards which the penalty pulls; zeros by default.
    """
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    truth, found = [], []
    for half in (0, 1):
        own, other = x[order[half::2]], x[order[1 - half :: 2]]
        truth.append(model.logits(other))
        found.append(refit_head(model, directions, own, ridge=ridge, start=start).logits(other))
    before, after = torch.cat(truth).double(), torch.cat(found).double()
    spread = (before - before.mean(dim=0)).square().mean(dim=0)
    wrong = (after - before).square().mean(dim=0)
    same = (decide(model, before) == decide(model, after)).double().mean()
    return Kept(float(same), float(1 - wrong.sum() / spread.sum()), 1 - wrong / spread.clamp(min=1e-30))


def swap_bank(
    model: ConceptBottleneck,
    bank: ConceptBank,
    x: Tensor,
    *,
    translation: bool = False,
    ridge: float = 1e-3,
    least: float = 0.5,
) -> tuple[ConceptBottleneck, BankSwap]:
    """A model that makes the same decisions with another bank, and how well it does.

    Args:
        model: a linear bottleneck.
        bank: the new bank, embedded by the model's encoder.
        x: unit-norm features ``[M, D]`` of images of the domain.
        translation: whether concept k says in other words what the model's concept k says: then the penalty pulls its
            weights towards those of that concept, not towards zero.
        ridge: strength of the penalty, see ``refit_head``.
        least: share of the decisions that must be kept.

    Raises:
        UserError: the model has an activation, the ridge is 0, the translation has another length or meaning, or fewer
            decisions than ``least`` are kept.
    """
    directions = bank.directions()
    if ridge <= 0:
        raise UserError(f"ridge={ridge:g}: expected a number > 0")
    if model.activation is not None:
        raise UserError(
            f"the bank of a model with an activation ({type(model.activation).__name__}) cannot be exchanged: what "
            "passes it is not linear in the features; train it on the new bank"
        )
    if directions.shape[1] != model.concepts.shape[1]:
        raise UserError(
            f"concept bank '{bank.name}' has {directions.shape[1]} dimensions, the model {model.concepts.shape[1]}: "
            "embed it with the model's encoder"
        )
    if translation and len(bank) != len(model.concepts):
        raise UserError(
            f"concept bank '{bank.name}' has {len(bank)} concepts and the model {len(model.concepts)}: a translation "
            "has as many, in the same order"
        )
    start = model.weights() if translation else None
    noise = apply_control(bank, "random", 0).directions()
    swap = BankSwap(
        bank.name,
        kept(model, directions, x, ridge=ridge, start=start),
        kept(model, noise, x, ridge=ridge),
        kept(model, directions, x, ridge=1e12, start=start) if translation else None,
    )
    if swap.kept.agreement < least:
        raise UserError(
            f"{swap}: less than least={least:g}; the new concepts do not see what the model decides by "
            "(least=0 takes it all the same)"
        )
    if swap.unfitted is not None and swap.unfitted.agreement < least:
        raise UserError(
            f"{swap}: this is no translation: its concepts do not score pictures as those in their place do "
            "(least=0 takes it all the same)"
        )
    if swap.kept.r2 <= swap.random.r2:
        log.warning("random directions keep as much as '%s': what is kept says nothing for its phrases", bank.name)
    return refit_head(model, directions, x, ridge=ridge, start=start), swap
