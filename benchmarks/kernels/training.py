"""Training on features that lie on the device: the certified sparse head, the energy's inference, a linear probe."""

from __future__ import annotations

import torch
from kernels.bench import Bench

from cbm.solvers import LinearScores, elastic_net_path, fit_logistic
from cbm.solvers.concept_blocks import ConceptBlocks, concept_blocks
from cbm.solvers.energy import JointEnergy, infer

SHAPES = [(2000, 216, 128, 20), (50_000, 1000, 512, 100)]
TINY = [(60, 12, 8, 3)]


def measure(bench: Bench, n: int, k: int, d: int, c: int) -> None:
    """The same work on the CPU of this machine, and on the device."""
    x, t = bench.unit(n, d, torch.float32), bench.unit(k, d, torch.float32)
    y = (x @ bench.unit(c, d, torch.float32).T).argmax(1)
    shape = {"N": n, "K": k, "D": d, "C": c}
    rows = {"flop": 4 * n * d * c, "moved": 4 * n * d, "ceiling": "fp32"}

    def path(device: str):
        features, text, labels = x.to(device), t.to(device), y.to(device)
        return lambda: elastic_net_path(
            LinearScores(features, text), labels, num_classes=c, n_lambdas=10, max_nec=10
        ).points[-1].gap  # fmt: skip

    def probe(device: str):
        features, labels = x.to(device), y.to(device)
        return lambda: fit_logistic(features, labels, l2=1e-4, num_classes=c, max_iter=50, tol=1e-3)[0][0]

    def energies(device: str):
        generator = torch.Generator().manual_seed(0)
        concepts, hidden, images = min(k, 64), 32, min(n, 2048)
        blocks = concept_blocks(concepts)
        joint = JointEnergy(
            *(torch.randn(shape, generator=generator).to(device)
              for shape in ((concepts, hidden), (hidden,), (c, hidden))),
            ConceptBlocks(blocks.count, blocks.values.to(device), blocks.allowed.to(device)),
        )  # fmt: skip
        scores, logits = (torch.randn(s, generator=generator).to(device) for s in ((images, c), (images, concepts)))
        return lambda: infer(scores, logits, joint, method="importance").class_probability

    places = dict.fromkeys((bench.device, "cpu"))
    for op, make in (("sparse path, 10 penalties", path), ("linear probe", probe), ("energy inference", energies)):
        bench.compare(
            op, shape, {f"on {place}": lambda place=place, make=make: make(place) for place in places}, **rows
        )
