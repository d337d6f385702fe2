"""Random nonlinear bottlenecks, and their loss and logits by loops over pictures and concepts in float64."""

import math
from typing import Any

import torch
from torch import Tensor

PHI = {
    "identity": lambda z: z,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "cube": lambda z: z**3,
}
NAMES = ("x", "concepts", "head", "alpha", "beta", "bias")


def problem(n: int, k: int, d: int, c: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Tensor]:
    """Tensors x, concepts, head, alpha, beta, bias, inv_norm, y; vectors in float32 or float64."""
    g = torch.Generator().manual_seed(seed)
    wide = torch.promote_types(dtype, torch.float32)
    x = torch.randn(n, d, generator=g)
    return {
        "x": x.to(dtype),
        "concepts": torch.nn.functional.normalize(torch.randn(k, d, generator=g), dim=1).to(dtype),
        "head": (torch.randn(c, k, generator=g) / math.sqrt(k)).to(dtype),
        "alpha": (torch.rand(k, generator=g) + 0.5).to(wide),
        "beta": (torch.randn(k, generator=g) * 0.3).to(wide),
        "bias": torch.randn(c, generator=g).to(wide),
        "inv_norm": (1 / x.norm(dim=1).clamp(min=1e-12)).to(wide),
        "y": torch.randint(c, (n,), generator=g),
    }


def leaves(tensors: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    """The same numbers in new tensors, of which the named ones require a gradient."""
    return {name: t.detach().clone().requires_grad_(name in names) for name, t in tensors.items()}


def exact(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same numbers in float64 on the CPU."""
    return {n: t.detach().cpu().double() if t.is_floating_point() else t.detach().cpu() for n, t in tensors.items()}


def affine(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The vectors between products and activation, as arguments."""
    return {name: tensors[name] for name in ("alpha", "beta", "inv_norm")}


def slow(
    t: dict[str, Tensor], activation: str, scale: float, smoothing: float = 0.0, l1: float = 0.0
) -> dict[str, Any]:
    """Loss, logits, accuracy and mean |a| in float64, picture by picture, concept by concept, differentiable."""
    t = {name: v.double() if v.is_floating_point() else v for name, v in t.items()}
    losses, sizes, rows = [], [], []
    for i in range(len(t["x"])):
        dots = torch.stack([(t["x"][i] * concept).sum() for concept in t["concepts"]])
        a = PHI[activation](scale * t["inv_norm"][i] * t["alpha"] * dots + t["beta"])
        logits = torch.stack([(row * a).sum() for row in t["head"]]) + t["bias"]
        log_p = logits - logits.exp().sum().log()
        losses.append(-(1 - smoothing) * log_p[t["y"][i]] - smoothing * log_p.mean())
        sizes.append(a.abs().mean())
        rows.append(logits)
    logits, size = torch.stack(rows), torch.stack(sizes).mean()
    return {
        "loss": torch.stack(losses).mean() + l1 * size,
        "logits": logits,
        "accuracy": (logits.argmax(1) == t["y"]).double().mean(),
        "mean_abs_score": size,
    }


def relative(found: Tensor, expected: Tensor) -> float:
    """Frobenius norm of the difference over that of what was expected."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))
