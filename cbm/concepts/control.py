"""Controls: banks whose names say nothing about their directions. Concepts that matter must do better than both."""

from dataclasses import replace

import torch

from cbm.concepts.bank import ConceptBank

CONTROLS = ("random", "shuffled")


def apply_control(bank: ConceptBank, control: str | None, seed: int) -> ConceptBank:
    """An embedded bank with its directions replaced.

    Args:
        bank: bank with embeddings ``[K, D]``.
        control: ``random`` for random unit directions; ``shuffled`` for the directions of other concepts; None for the
            bank as it is. Names and owners stay.
        seed: random seed for the draw.
    """
    if control is None:
        return bank
    known = bank.directions()
    generator = torch.Generator().manual_seed(seed + 7919)
    if control == "random":
        directions = torch.randn(known.shape, generator=generator)
        embeddings = torch.nn.functional.normalize(directions, dim=1)
    else:
        # a random cycle: nobody keeps its own direction
        order = torch.randperm(len(bank), generator=generator)
        embeddings = torch.empty_like(known)
        embeddings[order] = known[order.roll(1)]
    return replace(bank, embeddings=embeddings)
