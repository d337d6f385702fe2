"""Dictionaries as others write them: which tensor is what, and which way round.

=====================  =============================================================================================
saev                   a line of JSON, then a state dict: ``W_enc [D, K]``, ``W_dec [K, D]``, ``b_enc``, ``b_dec``,
                       perhaps ``activation.threshold``; ``b_dec`` is subtracted only in files of its first two schemas
SAELens, Prisma        the same names, perhaps ``threshold [K]`` or ``log_threshold``; a ``cfg.json`` beside it says the
                       rest (``apply_b_dec_to_input``, ``k``, ``normalize_activations``)
overcomplete           ``dictionary._weights [K, D]`` and one linear layer ``encoder.final_block.0`` (or ``encoder``,
                       ``encoder.0``); perhaps ``thresholds`` (logarithms); archetypal dictionaries as convex sums
sparse_autoencoder     ``encoder._weight [1, K, D]``, ``decoder._weight [1, D, K]``, ``tied_bias [1, D]``: the copy in
(Discover-then-Name)   Discover-then-Name and its origin, with and without the component axis and the underscores
a matrix               the only matrix of a file, or the one of a usual name, with one atom a row
=====================  =============================================================================================

Where there is an encoder, a tensor that its layout does not know is refused: a bias left out would go unnoticed.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cbm.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Fields = dict[str, Any]
"""What a ``cbm.files.dictionaries.Dictionary`` is made of, by name."""

ATOMS = ("atoms", "dictionary", "components", "codebook", "prototypes", "centres", "centers", "centroids", "vectors",
         "embeddings", "concepts")  # fmt: skip
"""How a matrix is called, in any case, of which every row is an atom."""
MEANS = ("mean", "b_dec")
"""How a vector is called that lies beside it and is added to every sum."""
MEANT = {"d_sae", "d_in", "architecture", "activation_fn_str", "apply_b_dec_to_input"}
"""One of these stands in the ``cfg.json`` of SAELens and Prisma, of any version."""
WRAPPED = ("state_dict", "model", "module", "sae", "autoencoder")
"""What names begin with where weights lie in something larger."""
ARCHITECTURES = ("standard", "topk", "jumprelu", "batchtopk", "matryoshka_batchtopk")
"""Of SAELens, those that are one linear layer each way."""


def fields_of(
    file: Path,
    tensors: Mapping[str, "Tensor"],
    header: Any,
    config: Callable[[], dict[str, Any] | None],
    dim: int | None = None,
) -> Fields:
    """What tensors of a file mean.

    Args:
        file: the file, for messages.
        tensors: its tensors by name; those of nested dicts as ``state_dict/W_enc``.
        header: the JSON that stands before them, or None.
        config: function that reads what lies beside the file.
        dim: width D of the features, if it is known.

    Raises:
        UserError: they are of no layout that is known, or cannot be told apart.
    """
    layout = Layout(file, tensors)
    if "W_dec" in layout.tensors:
        if isinstance(header, dict):
            return _saev(layout, header)
        return _saelens(layout, config())
    if set(layout.tensors) & {"dictionary.weights", "dictionary.dictionary", "dictionary.C"}:
        return _overcomplete(layout)
    if "encoder.weight" in layout.tensors and "decoder.weight" in layout.tensors:
        return _sparse_autoencoder(layout)
    if any(name.startswith(("encoder.", "W_enc")) for name in layout.tensors):
        raise UserError(f"'{file}' has an encoder ({layout.some()}), but no decoder that is known: {SUPPORTED}")
    return _matrix(layout, dim)


SUPPORTED = (
    "read are saev, SAELens, Prisma, overcomplete and sparse_autoencoder (Discover-then-Name), or one matrix of atoms "
    "[K, D]"
)


class Layout:
    """Tensors under plain names, of which every one has to be asked for.

    Args:
        file: the file, for messages.
        tensors: tensors by the name that they have in there.
    """

    def __init__(self, file: Path, tensors: Mapping[str, "Tensor"]):
        self.file = file
        self.tensors: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if (plain := _plain(name)) in self.tensors:
                raise UserError(f"'{file}' holds several dictionaries, such as '{name}': expected one a file")
            self.tensors[plain] = tensor

    def some(self) -> str:
        """The first names, for messages."""
        return ", ".join(list(self.tensors)[:4])

    def take(self, *names: str) -> "Tensor | None":
        """The tensor of the first of these names that is there, in float32."""
        for name in names:
            if (found := self.tensors.pop(name, None)) is not None:
                return found.float()
        return None

    def need(self, name: str, ndim: int = 2) -> "Tensor":
        """The tensor of this name, in float32."""
        found = self.take(name)
        if found is None:
            raise UserError(f"'{self.file}' has no '{name}' beside {self.some()}: {SUPPORTED}")
        if found.dim() != ndim:
            raise UserError(f"'{self.file}': '{name}' is {list(found.shape)}, expected {ndim} dimensions")
        return found

    def done(self, what: str) -> None:
        """Refuse what nobody asked for."""
        if self.tensors:
            raise UserError(f"'{self.file}' is of {what}, but has '{next(iter(self.tensors))}' too, which is not known")


def _plain(name: str) -> str:
    """A name without what it is wrapped in and without underscores in front: ``sae.encoder._weight``, ``W_enc``.

    >>> _plain("state_dict/module.encoder._weight"), _plain("W_enc"), _plain("decoder/bias")
    ('encoder.weight', 'W_enc', 'decoder.bias')
    """
    parts = [part.lstrip("_") for part in name.replace("/", ".").split(".")]
    while len(parts) > 1 and parts[0] in WRAPPED:
        parts = parts[1:]
    return ".".join(parts)


def _linear(layout: Layout) -> Fields:
    """Encoder and decoder of saev, SAELens and Prisma."""
    import torch

    atoms, encoder = layout.need("W_dec"), layout.take("W_enc")
    bias, mean = layout.take("b_enc"), layout.take("b_dec")
    if encoder is not None and tuple(encoder.shape) != tuple(atoms.T.shape):
        raise UserError(
            f"'{layout.file}': W_enc is {list(encoder.shape)} and W_dec is {list(atoms.shape)}, expected [D, K] and "
            "[K, D]: a transcoder to other features is none"
        )
    if encoder is None and bias is not None:
        raise UserError(f"'{layout.file}' has b_enc, but no W_enc")
    return {
        "atoms": atoms,
        "mean": torch.zeros(atoms.shape[1]) if mean is None else mean,
        "encoder": None if encoder is None else encoder.T.contiguous(),
        "encoder_bias": None if encoder is None else torch.zeros(len(atoms)) if bias is None else bias,
    }


def _thresholds(threshold: "Tensor | None", size: int) -> "Tensor | None":
    """One threshold of all units, or one of each; None where it lies at 0 or below, as ReLU's does."""
    if threshold is None or not bool((threshold > 0).any()):
        return None
    return threshold.expand(size).clone() if threshold.numel() == 1 and threshold.dim() < 2 else threshold


def _count(file: Path, value: Any) -> int:
    """How many units fire; SAELens says it as a float, the mean of a batch."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.5 <= value < 1e9:
        raise UserError(f"'{file}': the number of units that fire is {value!r}, expected 1 or more")
    return round(value)


def _saev(layout: Layout, header: dict[str, Any]) -> Fields:
    fields = _linear(layout)
    threshold = layout.take("activation.threshold")
    layout.done("saev")
    config = header.get("cfg", header)
    activation = config.get("activation") if isinstance(config, dict) else None
    old = header.get("cls") in ("Relu", "TopK", "BatchTopK")  # the first form of schema 1
    if isinstance(activation, dict):
        kind, settings = activation.get("cls"), activation.get("params", {})
    else:
        kind, settings = (header["cls"], config) if old else ("Relu", {})
    if kind not in ("Relu", "TopK", "BatchTopK"):
        raise UserError(f"'{layout.file}': saev's activation '{kind}' is not known: expected Relu, TopK or BatchTopK")
    told = threshold is not None or kind == "Relu"
    settings = settings if isinstance(settings, dict) else {}
    return {
        **fields,
        "threshold": _thresholds(threshold, len(fields["atoms"])),
        "k": None if told else _count(layout.file, settings.get("top_k", 32)),
        "subtracts": "schema" not in header or old,
        "source": f"{layout.file.name} (saev)",
    }


def _saelens(layout: Layout, config: dict[str, Any] | None) -> Fields:
    file, gated = layout.file, {"b_gate", "b_mag", "r_mag"} & set(layout.tensors)
    if gated:
        raise UserError(f"'{file}' is a gated autoencoder ({min(gated)}): {' and '.join(ARCHITECTURES[:3])} are read")
    if config is None:
        raise UserError(
            f"'{file}' is read with the cfg.json that SAELens and Prisma put beside it, and there is none: it says "
            "whether b_dec is subtracted (apply_b_dec_to_input) and which units fire (k)"
        )
    fields = _linear(layout)
    atoms = fields["atoms"]
    threshold, logarithm = layout.take("threshold", "topk_threshold"), layout.take("log_threshold")
    factor = layout.take("scaling_factor")
    if factor is not None and bool((factor != 1).any()):
        raise UserError(f"'{file}' scales its units afterwards (scaling_factor), which is not read")
    layout.tensors.pop("sparsity", None)  # how often each unit fired: nothing that it computes with
    layout.done("SAELens or Prisma")
    architecture = str(config.get("architecture", "standard")).removesuffix("_sae")
    function = str(config.get("activation_fn_str", config.get("activation_fn", "relu")))
    kwargs = config.get("activation_fn_kwargs")
    kwargs = kwargs if isinstance(kwargs, dict) else {}
    if architecture not in ARCHITECTURES or function not in ("relu", "topk"):
        raise UserError(
            f"'{file}' is of architecture '{architecture}' with '{function}': expected one of "
            f"{', '.join(ARCHITECTURES)} with relu or topk"
        )
    threshold = logarithm.exp() if threshold is None and logarithm is not None else threshold
    top = "topk" in (architecture, function) or (architecture.endswith("batchtopk") and threshold is None)
    k = config.get("k", kwargs.get("k")) if top else None
    if top and k is None:
        raise UserError(f"'{file}': its k largest units fire, but cfg.json does not say k")
    if architecture == "jumprelu" and threshold is None:
        raise UserError(f"'{file}' is of architecture 'jumprelu', but has no 'threshold'")
    if config.get("rescale_acts_by_decoder_norm") and fields["encoder"] is not None:
        length = atoms.norm(dim=1).clamp(min=1e-30)  # it compares units by what they add: so do unit atoms
        fields |= {"atoms": atoms / length[:, None], "encoder": fields["encoder"] * length[:, None],
                   "encoder_bias": fields["encoder_bias"] * length}  # fmt: skip
    return {
        **fields,
        "threshold": _thresholds(threshold, len(atoms)),
        "k": None if k is None else _count(file, k),
        "scale": _saelens_scale(file, str(config.get("normalize_activations", "none")), atoms.shape[1]),
        "subtracts": bool(config.get("apply_b_dec_to_input", True)),
        "source": f"{file.name} (SAELens or Prisma)",
    }


def _saelens_scale(file: Path, normalisation: str, dim: int) -> float | None:
    """What features of unit norm are multiplied by. Both rescalings make the (mean) norm that of D ones."""
    if normalisation in ("constant_norm_rescale", "expected_average_only_in"):
        return math.sqrt(dim)
    if normalisation.lower() == "none":
        return None
    raise UserError(
        f"'{file}': normalize_activations is '{normalisation}', expected none, constant_norm_rescale or "
        "expected_average_only_in"
    )


def _overcomplete(layout: Layout) -> Fields:
    import torch

    file = layout.file
    atoms = _overcomplete_atoms(layout)
    thresholds = layout.take("thresholds")
    place = next((place for place in ("final_block.0.", "0.", "") if f"encoder.{place}weight" in layout.tensors), "")
    encoder, bias = layout.take(f"encoder.{place}weight"), layout.take(f"encoder.{place}bias")
    if deeper := [name for name in layout.tensors if name.startswith("encoder.")]:
        raise UserError(
            f"'{file}': the encoder of overcomplete has '{deeper[0]}': read is one linear layer without normalisation, "
            "such as MLPEncoder(D, K, nb_blocks=1, norm_layer=nn.Identity)"
        )
    layout.done("overcomplete")
    if encoder is not None and tuple(encoder.shape) != tuple(atoms.shape):
        raise UserError(
            f"'{file}': the encoder of overcomplete is {list(encoder.shape)}, its dictionary {list(atoms.shape)}: "
            "expected [K, D] of both"
        )
    return {
        "atoms": atoms,
        "mean": torch.zeros(atoms.shape[-1]),
        "encoder": encoder,
        "encoder_bias": None if encoder is None else torch.zeros(len(atoms)) if bias is None else bias,
        "threshold": None if thresholds is None else thresholds.exp(),
        "source": f"{file.name} (overcomplete)",
    }


def _overcomplete_atoms(layout: Layout) -> "Tensor":
    """The dictionary as ``get_dictionary`` makes it: unit rows (the default), or convex sums of points, and a rest."""
    import torch

    if "dictionary.C" not in layout.tensors:
        plain = "dictionary.weights" if "dictionary.weights" in layout.tensors else "dictionary.dictionary"
        atoms = layout.need(plain)
        norm = atoms.norm(dim=1, keepdim=True)
        near = plain == "dictionary.weights" and bool(((norm - 1).abs() < 0.1).all())  # a step after the last time
        return atoms / norm if near else atoms
    points, share, rest = (layout.need(f"dictionary.{name}") for name in ("C", "W", "Relax"))
    size = layout.take("dictionary.multiplier")
    if share.shape[1] != len(points) or tuple(rest.shape) != (len(share), points.shape[1]):
        raise UserError(
            f"'{layout.file}': dictionary.W is {list(share.shape)} and Relax {list(rest.shape)}, but there are "
            f"{len(points):,} points of {points.shape[1]:,} features"
        )
    share = share.clamp(min=0)
    atoms = share / (share.sum(dim=1, keepdim=True) + 1e-8) @ points + rest
    return atoms if size is None else atoms * torch.exp(size)


def _sparse_autoencoder(layout: Layout) -> Fields:
    import torch

    file = layout.file
    found = {name: layout.take(name) for name in ("encoder.weight", "decoder.weight", "encoder.bias", "tied_bias",
                                                  "pre_encoder_bias.bias_reference",
                                                  "post_decoder_bias.bias_reference")}  # fmt: skip
    layout.done("sparse_autoencoder")
    ndims = {name: 2 if "weight" in name else 1 for name in found}
    parts = {name: tensor for name, tensor in found.items() if tensor is not None}
    for name, tensor in parts.items():
        if tensor.dim() == ndims[name] + 1 and len(tensor) == 1:  # the component axis
            parts[name] = tensor[0]
        elif tensor.dim() != ndims[name]:
            raise UserError(
                f"'{file}': '{name}' is {list(tensor.shape)}, expected one component: several autoencoders in one file "
                "are not read"
            )
    encoder, atoms = parts["encoder.weight"], parts["decoder.weight"].T.contiguous()
    if tuple(encoder.shape) != tuple(atoms.shape):
        raise UserError(
            f"'{file}': encoder.weight is {list(encoder.shape)} and decoder.weight {list(atoms.T.shape)}, expected "
            "[K, D] and [D, K]"
        )
    biases = [parts[name] for name in found if ndims[name] == 1 and name != "encoder.bias" and name in parts]
    if any(bias.shape != biases[0].shape or not bool((bias == biases[0]).all()) for bias in biases[1:]):
        raise UserError(f"'{file}': the biases before the encoder and after the decoder differ, and are one by design")
    return {
        "atoms": atoms,
        "mean": biases[0] if biases else torch.zeros(atoms.shape[1]),
        "encoder": encoder,
        "encoder_bias": parts.get("encoder.bias", torch.zeros(len(atoms))),
        "subtracts": bool(biases),
        "source": f"{file.name} (sparse_autoencoder)",
    }


def _matrix(layout: Layout, dim: int | None) -> Fields:
    """A plain matrix of atoms, one a row unless its width says that they are columns."""
    import torch

    file = layout.file
    matrices = {name: tensor for name, tensor in layout.tensors.items() if tensor.dim() == 2}
    known = [name for name in matrices if name.casefold() in ATOMS]
    chosen = known if len(known) == 1 else list(matrices)
    if len(chosen) != 1:
        have = f"{len(chosen)}: {', '.join(chosen[:6])}" if chosen else f"none ({layout.some() or 'nothing'})"
        raise UserError(f"'{file}': expected one matrix of atoms [K, D], found {have}; {SUPPORTED}")
    matrix = matrices[chosen[0]]
    if not matrix.is_floating_point():
        raise UserError(f"'{file}' {chosen[0]} holds {matrix.dtype}: expected floating-point atoms [K, D]")
    height, width = matrix.shape
    turned = False
    if chosen[0] == "decoder.weight":  # of a linear layer from K to D
        turned = True
    elif not known and height == width:
        raise UserError(
            f"'{file}' {chosen[0]} is {height:,} x {width:,}: whether its rows or its columns are atoms cannot be "
            "told; save it with one atom a row under the name 'atoms'"
        )
    elif not known and dim is not None and width != dim == height:
        turned = True
    atoms = (matrix.T.contiguous() if turned else matrix).float()
    vectors = {name.casefold(): tensor for name, tensor in layout.tensors.items() if tensor.dim() == 1}
    mean = next((vectors[name] for name in MEANS if name in vectors and vectors[name].is_floating_point()), None)
    return {
        "atoms": atoms,
        "mean": torch.zeros(atoms.shape[1]) if mean is None else mean.float(),
        "subtracts": mean is not None,
        "source": file.name,
    }
