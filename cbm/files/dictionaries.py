"""Dictionaries: directions of which features are sums, and how a picture is read with them. Ours, and those of others.

For a picture x of unit norm a dictionary of K atoms says

    h = (scale * x - mean) W^T + b        W [K, D] the encoder; ``mean`` only where it subtracts it
    z = h where a unit fires, else 0      above its threshold; the k largest; or above 0
    scale * x ~ z A + mean                A [K, D] the atoms

What others wrote (``cbm.files.dictionary_layouts``) is read from tensors alone; nothing in a file is executed.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbm.errors import UserError, did_you_mean
from cbm.files.arrays import ARRAYS, HoldsObjects, leading_json, read_arrays
from cbm.files.dictionary_layouts import MEANT, fields_of
from cbm.files.parsing import read_json
from cbm.files.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

KIND = "dictionary"
TENSORS = ("atoms", "mean", "encoder", "encoder_bias", "threshold")
WEIGHTS = ("sae_weights.safetensors", "dictionary.safetensors", "weights.pt", "sae.pt")
"""Files that are looked for in a folder, in this order."""
CONFIGS = ("cfg.json", "config.json")
"""What may lie beside a file of weights and say how they are meant."""


@dataclass(frozen=True)
class Dictionary:
    """Atoms, and how a picture is read with them.

    Attributes:
        atoms: directions ``[K, D]``, of any length.
        mean: what is added to every sum of atoms ``[D]`` (the decoder's bias); zeros if there is none.
        encoder: weights ``[K, D]`` that read a picture; None if the file has only atoms.
        encoder_bias: what is added to their products ``[K]``; None if the file has only atoms.
        threshold: value ``[K]`` above which a unit fires; None if the file says none.
        k: how many units fire, the largest ones; None if the file does not say.
        scale: factor on features of unit norm before anything else; None if the file does not say, as where features
            were taken as the model gave them.
        subtracts: whether ``mean`` is subtracted before the encoder.
        source: where it comes from.
    """

    atoms: "Tensor"
    mean: "Tensor"
    encoder: "Tensor | None" = None
    encoder_bias: "Tensor | None" = None
    threshold: "Tensor | None" = None
    k: int | None = None
    scale: float | None = None
    subtracts: bool = False
    source: str = ""

    def __len__(self) -> int:
        """Number of atoms K."""
        return len(self.atoms)

    @property
    def dim(self) -> int:
        """Width D of the features."""
        return self.atoms.shape[1]


def write_dictionary(path: Path, dictionary: Dictionary) -> None:
    """Write a dictionary to a safetensors file that carries its own checksum.

    Args:
        path: the file to write.
        dictionary: the dictionary.

    Raises:
        UserError: its tensors do not fit together or hold NaN, the disk is full, or the place cannot be written to.

    Example:
        >>> import tempfile
        >>> import torch
        >>> made = Dictionary(torch.eye(3)[:2], torch.zeros(3), k=1, scale=2.0, source="by hand")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_dictionary(Path(folder) / "two.safetensors", made)
        ...     again = read_dictionary(Path(folder) / "two.safetensors")
        >>> len(again), again.dim, again.k, again.scale, again.encoder, again.source
        (2, 3, 1, 2.0, None, 'by hand')
    """
    _check(dictionary, f"'{path}'")
    tensors = {name: value.clone() for name in TENSORS if (value := getattr(dictionary, name)) is not None}
    about = {name: getattr(dictionary, name) for name in ("k", "scale", "subtracts", "source")}
    write_tensors(path, tensors, {"kind": KIND, **about})


def read_dictionary(path: Path, dim: int | None = None) -> Dictionary:
    """A dictionary that ``write_dictionary`` wrote, or somebody else.

    Read are: ``.pt`` of saev; state dicts of overcomplete whose encoder is one linear layer, and of sparse_autoencoder
    (Discover-then-Name); ``sae_weights.safetensors`` with the ``cfg.json`` beside it of SAELens and Prisma, or their
    folder; and a plain matrix of atoms in ``.npy``, ``.npz``, ``.safetensors`` or ``.pt``.

    Args:
        path: the file, or a folder with one.
        dim: width D of the features that it is for, if it is known: it says where the atoms of a plain matrix are.

    Raises:
        UserError: there is no such file, it is damaged or of another kind, it is for features of another width, its
            tensors do not fit together or hold NaN, or it is of a kind that is not read.
    """
    file = _in_folder(path) if path.is_dir() else path
    dictionary = _own(file) or _foreign(file, dim)
    _check(dictionary, f"'{file}'")
    if dim is not None and dictionary.dim != dim:
        raise UserError(
            f"'{file}' is a dictionary for {dictionary.dim:,} features, but there are {dim:,}: was it made with "
            "another encoder?"
        )
    return dictionary


def _in_folder(folder: Path) -> Path:
    """The file of weights in a folder."""
    there = {file.name: file for file in sorted(folder.iterdir()) if file.suffix.lower() in ARRAYS and file.is_file()}
    usual = [there[name] for name in WEIGHTS if name in there]
    found = usual[:1] or list(there.values())
    if len(found) != 1:
        have = f"several: {', '.join(there)}; name one" if there else "none"
        raise UserError(f"'{folder}': expected one file of weights such as {WEIGHTS[0]}, found {have}")
    return found[0]


def _own(file: Path) -> Dictionary | None:
    """What ``write_dictionary`` wrote; None if somebody else did."""
    if not file.is_file():
        siblings = [entry.name for entry in file.parent.iterdir()] if file.parent.is_dir() else []
        raise UserError(f"no dictionary '{file}': {did_you_mean(file.name, siblings)}".removesuffix(": "))
    if file.suffix.lower() != ".safetensors":
        return None
    tensors, about = read_tensors(file)
    if not isinstance(about, dict) or about.get("kind") != KIND:
        return None
    if missing := [name for name in TENSORS[:2] if name not in tensors]:
        raise UserError(f"'{file}' is a dictionary without '{missing[0]}': it was not written by cbm")
    some = {name: tensors.get(name) for name in TENSORS[2:]}
    return Dictionary(
        tensors["atoms"],
        tensors["mean"],
        **some,
        k=about.get("k"),
        scale=about.get("scale"),
        subtracts=bool(about.get("subtracts")),
        source=str(about.get("source", "")),
    )


def _foreign(file: Path, dim: int | None) -> Dictionary:
    """What somebody else wrote."""
    import torch

    try:
        arrays = read_arrays(file)
    except HoldsObjects as error:
        raise UserError(
            f"'{file}' holds Python objects, which are not loaded (they could do anything): save the weights alone, "
            "torch.save(sae.state_dict(), FILE)"
        ) from error
    header = leading_json(file) if file.suffix.lower() in (".pt", ".pth") else None
    tensors = {name: torch.as_tensor(array.read()) for name, array in arrays.items() if array.kind in "fi"}
    plain = {name: tensor.detach() for name, tensor in tensors.items()}
    return Dictionary(**fields_of(file, plain, header, lambda: _config(file), dim))


def _config(file: Path) -> dict[str, Any] | None:
    """What a file beside the weights says about them."""
    for name in CONFIGS:
        if (beside := file.parent / name).is_file():
            content = read_json(beside)
            if isinstance(content, dict) and set(content) & MEANT:
                return content
    return None


def _check(dictionary: Dictionary, where: str) -> None:
    """Whether its tensors fit together.

    Raises:
        UserError: they do not, or hold NaN or infinite values.
    """
    atoms = dictionary.atoms
    if atoms.dim() != 2 or not atoms.numel():
        raise UserError(f"{where}: its atoms are {list(atoms.shape)}, expected [K, D]")
    size, dim = atoms.shape
    wanted = {"mean": [dim], "encoder": [size, dim], "encoder_bias": [size], "threshold": [size]}
    for name in TENSORS:
        value = getattr(dictionary, name)
        if value is None:
            continue
        if list(value.shape) != wanted.get(name, [size, dim]):
            raise UserError(
                f"{where}: {name} is {list(value.shape)}, expected {wanted[name]} for {size:,} atoms of {dim:,} "
                "features"
            )
        if not value.is_floating_point():
            raise UserError(f"{where}: {name} holds {value.dtype}, expected floating-point numbers")
        if bad := int((~value.isfinite()).sum()):
            raise UserError(f"{where}: {name} has {bad:,} NaN or infinite value(s)")
    if (dictionary.encoder is None) != (dictionary.encoder_bias is None):
        raise UserError(f"{where}: an encoder and its bias belong together, and one of them is missing")
    if dictionary.k is not None and not (isinstance(dictionary.k, int) and 1 <= dictionary.k <= size):
        raise UserError(f"{where}: k is {dictionary.k}, expected 1 to {size}, the number of atoms")
    scale = dictionary.scale
    if scale is not None and not (isinstance(scale, int | float) and 0 < scale < float("inf")):
        raise UserError(f"{where}: scale is {scale}, expected a number above 0")
