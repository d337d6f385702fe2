"""``Record``: for which model edits were made, on which images they were chosen, and what was expected of them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Record:
    """Where edits come from; kept with them in ``edits.yaml``.

    Attributes:
        run: the run whose model was edited.
        model: key of that model (``model_key``).
        split: images on which the edits were chosen, such as ``birds/val``.
        pictures: number of these images whose labels were used.
        before: balanced accuracy on them before the edits; of images left out where an editor chose.
        after: the same after the edits.
        p: p-value of the difference.
    """

    run: str | None = None
    model: str | None = None
    split: str | None = None
    pictures: int | None = None
    before: float | None = None
    after: float | None = None
    p: float | None = None

    def warnings(self, model: str, split: str) -> list[str]:
        """What a reader of an evaluation of these edits should know.

        Args:
            model: key of the model that is evaluated with them.
            split: the images on which it is.
        """
        found = []
        if self.model is not None and self.model != model:
            made = "another model" if self.run is None else f"another model, that of '{self.run}'"
            found.append(f"the edits were made for {made}: what was expected of them was not expected here")
        if self.split == split:
            which = "these very images" if self.pictures is None else f"{self.pictures} of these very images"
            found.append(f"the edits were chosen on {which} ({split}): their gain looks larger; report it on others")
        return found

    def __str__(self) -> str:
        where = "images that were not recorded" if self.split is None else self.split
        count = "" if self.pictures is None else f" ({self.pictures} pictures)"
        text = f"chosen on {where}{count}"
        if self.before is None or self.after is None:
            return text
        p = "" if self.p is None else f", p = {self.p:.2g}"
        return f"{text}: balanced accuracy {self.before:.3f} -> {self.after:.3f}{p}"


def model_key(model: nn.Module, texts: Sequence[str], classes: Sequence[str]) -> str:
    """A short hash of a model: its numbers, the texts of its concepts and its classes.

    Example:
        >>> from torch import nn
        >>> model_key(nn.Linear(2, 2), ["red"], ["a", "b"]) == model_key(nn.Linear(2, 2), ["red"], ["a", "b"])
        False
    """
    found = hashlib.blake2b("\0".join([*texts, "", *classes]).encode(errors="surrogateescape"), digest_size=8)
    for name, value in sorted(model.state_dict().items()):
        found.update(f"{name}{list(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
