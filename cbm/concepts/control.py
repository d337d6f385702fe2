"""Controls: banks whose names say nothing about their directions. A claim about concepts must beat both."""

from dataclasses import replace

import torch

from cbm.concepts.bank import ConceptBank

CONTROLS = ("random", "shuffled")


def apply_control(bank: ConceptBank, control: str | None, seed: int) -> ConceptBank:
    """An embedded bank with its directions replaced.

    Args:
        bank: with embeddings ``[K, D]``.
        control: ``random``: every concept gets a random unit direction; ``shuffled``: every concept gets the direction
            of another concept; None: the bank as it is. Names and owners stay.
        seed: of the draw.
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
