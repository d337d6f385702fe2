"""Concepts that nobody wrote down: found in the features, then named, with a test that the names can fail.

    x = mean + sum_k z_k atom_k + rest          z >= 0, most of it exactly zero

``method.dictionary`` says how the atoms are found:

- ``topk``, ``batch_topk``, ``jumprelu``, ``relu``, ``matryoshka``, ``archetypal``: a sparse autoencoder
  (``cbm.layers.autoencoder``), trained by Lightning; its encoder says z in one step;
- ``kmeans``: centres of the pictures; ``crops``: centres of parts of the pictures (Prasse et al., "DCBM: Data-Efficient
  Visual Concept Bottleneck Models", ICML 2025); ``semi_nmf``: directions of which pictures are non-negative sums (Ding,
  Li, Jordan, TPAMI 2010). The head reads cosines with them, or with ``encode=code`` sparse codes over them;
- ``random``: directions drawn with the pictures' covariance, the control of all the others;
- a file: a dictionary that somebody else trained (``cbm.files.dictionaries``).

The configured concepts are the vocabulary that names the units (``cbm.metrics.unit_names``); units that no word fits
stay ``unnamed 0137`` and are shown by their pictures. The head is a certified elastic net on the units.

``fidelity=released`` follows Discover-then-Name (Rao, Mahajan, Böhle, Schiele, ECCV 2024) as its code computes it.
"""

import logging
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cbm.concepts.bank import ConceptBank
from cbm.data.features import FeatureData, FeatureSplit, mean_feature
from cbm.errors import UserError
from cbm.files import resolve_path
from cbm.files.dictionaries import Dictionary, write_dictionary
from cbm.layers import ConceptBottleneck, UnitCode
from cbm.layers.autoencoder import KINDS, Autoencoder, Dictionaries
from cbm.losses.autoencoder import autoencoder_loss, replace_dead, validation_error
from cbm.methods.base import Built, Method, one_of, register_method
from cbm.methods.found import ROWS, UNITS, Found, clusters, from_file, nearest_units, random_units, some_rows, start_of
from cbm.methods.sparse_head import SparseHeadConfig, check_sparse_head, fit_sparse_head, solve_sparse_head
from cbm.methods.unit_bank import Naming, NamingConfig, mean_of, unit_bank
from cbm.metrics.dictionaries import match_dictionaries
from cbm.metrics.reader import centre
from cbm.metrics.unit_names import UnitNames
from cbm.solvers import Codes, SparseScores, spherical_kmeans
from cbm.solvers.dictionary_adam import DictionaryAdam

log = logging.getLogger(__name__)

CLUSTERS = ("kmeans", "crops", "semi_nmf")
DICTIONARIES = (*KINDS, *CLUSTERS, "random")
SUFFIXES = (".safetensors", ".pt", ".pth", ".npz", ".npy")
STEPS = (1_500, 100_000)
"""Fewest and most training steps, if ``passes`` is not said."""
STREAM = 1_592_653
"""Added to the seed of random starts: numbers that nothing else was drawn from. An encoder whose own weights began from
the same seed would find its own axes at the start."""
PASSES = 50
WARMUP = 500
RELEASED_LENGTH = 10.0
"""Length of the released code's features, which are raw outputs of CLIP (about 10); ours have length 1."""
RELEASED_PENALTY, RELEASED_PASSES, RELEASED_LR, RELEASED_DEAD = 3e-5, 200, 5e-4, 10


@dataclass
class DiscoveredConfig:
    """Settings of concepts that are found in the features; None stands for the value that fits the data."""

    fidelity: str = "repaired"
    """repaired | released (Discover-then-Name)"""
    dictionary: str = "topk"
    """topk | batch_topk | jumprelu | relu | matryoshka | archetypal | kmeans | crops | semi_nmf | random | a file"""
    size: int | None = None
    """Number of units; null: 8 times the width of the features (256 clusters), at most an eighth of the images"""
    k: int | None = None
    """Units of an image: exactly, at most, or on average, as the dictionary has it; null: 16 (3 clusters)"""
    first: float = 8.0
    """Units of an image at first, in multiples of k; their number falls to k over the first half of the training"""
    encode: str = "encoder"
    """encoder: as the dictionary itself encodes images (clusters: cosines) | code: sparse codes over its atoms"""
    passes: int | None = None
    """Passes over the training images; null: 50, with 1,500 to 100,000 steps"""
    batch_size: int = 4096
    """Images per step, at most an eighth of them"""
    lr: float | None = None
    """Largest learning rate; null: the less the more units there are"""
    start: str = "random"
    """random | data: what the atoms are at first: random directions, or images with some noise"""
    dead: str = "aux"
    """What becomes of units that no longer fire: aux (they explain what is left) | resample (they begin anew from
    images that are badly explained) | none"""
    dead_after: int = 3
    """Passes without firing after which a unit is dead"""
    aux_k: int = 64
    """Dead units per image that explain what is left"""
    penalty: float | None = None
    """Penalty of relu and jumprelu; null: steered so that k units fire on average"""
    seeds: int = 2
    """Dictionaries that are trained to see which units are found again; the first one is used"""
    naming: NamingConfig = field(default_factory=NamingConfig)
    """When a unit counts as named"""
    l1_ratio: float = 0.99
    """Share of the l1 norm in the penalty of the head"""
    lam: float | None = None
    """Penalty of the head; null: chosen by validation"""
    max_nec: float = 30.0
    """Units per class at which the path of the head ends"""


@register_method("discovered")
class Discovered(Method):
    """Units of a dictionary that is found in the features, with names where words fit."""

    Config = DiscoveredConfig
    concepts_from = "features"
    uses_teacher = True

    def __init__(self, config: DiscoveredConfig):
        super().__init__(config)
        self.released = one_of("method.fidelity", config.fidelity, ("repaired", "released")) == "released"
        given = Path(config.dictionary)
        is_file = given.suffix.lower() in SUFFIXES or (bool(config.dictionary) and given.is_dir())
        is_file = is_file and config.dictionary not in DICTIONARIES
        self.file = resolve_path(config.dictionary) if is_file else None
        if self.file is None:
            one_of("method.dictionary", config.dictionary, DICTIONARIES)
        self.trains = config.dictionary in KINDS
        if self.released and config.dictionary not in ("topk", "relu"):
            raise UserError("method.fidelity=released is Discover-then-Name, whose dictionary is relu: say that, or "
                            "nothing")  # fmt: skip
        if self.released:
            config.dictionary, config.dead, config.dead_after = "relu", "resample", RELEASED_DEAD
        one_of("method.encode", config.encode, ("encoder", "code"))
        one_of("method.start", config.start, ("random", "data"))
        one_of("method.dead", config.dead, ("aux", "resample", "none"))
        one_of("method.naming.unnamed", config.naming.unnamed, ("keep", "drop"))
        one_of("method.naming.by", config.naming.by, ("atoms", "pictures"))
        for name, value, fits, expected in (
            ("size", config.size, config.size is None or config.size >= 2, "a number of units, 2 or more, or null"),
            ("k", config.k, config.k is None or config.k >= 1, "a number of units, 1 or more, or null"),
            ("first", config.first, 1 <= config.first < math.inf, "a multiple of k, 1 or more"),
            ("passes", config.passes, config.passes is None or config.passes >= 1, "1 or more, or null"),
            ("batch_size", config.batch_size, config.batch_size >= 1, "1 or more"),
            ("lr", config.lr, config.lr is None or 0 < config.lr < math.inf, "a number > 0, or null"),
            ("dead_after", config.dead_after, config.dead_after >= 1, "a number of passes, 1 or more"),
            ("aux_k", config.aux_k, config.aux_k >= 1, "a number of units, 1 or more"),
            ("penalty", config.penalty, config.penalty is None or config.penalty >= 0, "0 or more, or null"),
            ("seeds", config.seeds, config.seeds >= 1, "1 or more"),
            ("naming.fdr", config.naming.fdr, 0 < config.naming.fdr < 1, "a share between 0 and 1"),
            ("naming.min_auroc", config.naming.min_auroc, 0 <= config.naming.min_auroc <= 1, "0 to 1"),
        ):
            if not fits:
                raise UserError(f"method.{name}={value}: expected {expected}")
        self.clusters = config.dictionary in CLUSTERS
        self.k = config.k or (3 if self.clusters else UNITS)
        self.head = SparseHeadConfig(config.l1_ratio, config.lam, max_nec=config.max_nec)
        check_sparse_head(self.head)
        self.reads_crops = config.dictionary == "crops"
        self.dead_after = self.steps = 0
        self.lr = 0.0
        self.seeds: list[Tensor] = []
        """Atoms of the other dictionaries, which only measure stability."""
        self.mean = torch.zeros(0)
        self.found: Found | None = None
        self.is_control = False

    def as_control(self, candidates: ConceptBank, used: ConceptBank) -> tuple[Method, ConceptBank]:
        """The same head on random directions with the pictures' covariance: what the search for units is worth."""
        control = replace(
            self.config, dictionary="random", fidelity="repaired", size=len(used), seeds=1, encode="encoder"
        )
        method = Discovered(control)
        method.is_control = True
        return method, candidates

    # ------------------------------------------------------------------------------------------------ the dictionary

    def build(self, data: FeatureData, bank: ConceptBank | None, logit_scale: float) -> Built:
        """Make the dictionary, or what is trained to become one.

        Arguments as for ``Method.build``; ``bank`` is the vocabulary of names, or None.

        Raises:
            UserError: there are too few training images, or the file does not fit them.
        """
        x = data.train.x
        self.mean = mean_feature(x)
        if len(x) < 64:
            raise UserError(
                f"{len(x)} training images are too few to find concepts in: expected 64 or more; concepts that are "
                "written down (method=posthoc, concepts=FILE) need no dictionary"
            )
        distance = _distance(x, self.mean)
        if distance < 1e-5:
            raise UserError("the training images are all alike to the encoder: there is nothing to find in them")
        size = self._size(len(x), data.dim)
        k = min(self.k, size)
        if not self.trains:
            seeds = 1 if self.file is not None else self.config.seeds  # a file has no other start
            found = [self._found(data, size, data.seed + seed) for seed in range(seeds)]
            self.seeds = [other.atoms for other in found[1:]]
            return Built(found[0], bank)
        mean = torch.zeros(data.dim) if self.released else self.mean
        scale = RELEASED_LENGTH if self.released else 1 / distance
        batch = max(1, min(self.config.batch_size, len(x) // 8))
        steps = -(-len(x) // batch)
        passes = self.config.passes or (RELEASED_PASSES if self.released else passes_of(steps))
        self.steps, self.dead_after = steps * passes, self.config.dead_after * len(x)
        first = round(k * (1.0 if self.released else self.config.first))
        dictionaries = Dictionaries(
            Autoencoder(
                self._first(x, mean, size, data.seed + seed), size, k, self.config.dictionary, mean, scale,
                first, self.steps // 2,
            )
            for seed in range(self.config.seeds)
        )  # fmt: skip
        penalty = self.config.penalty
        if self.released:
            for each in dictionaries:
                _released_start(each)
            penalty = RELEASED_PENALTY * data.dim if penalty is None else penalty
        for each in dictionaries if penalty is not None else ():
            each.fix_penalty(penalty)
        lr = RELEASED_LR if self.released else learning_rate(size)
        self.lr = self.config.lr or lr
        log.info("discovered: %d units of %d images, %d of them in each; %d passes, %d steps of %d images%s",
                 size, len(x), k, passes, self.steps, batch,
                 f", {self.config.seeds} dictionaries" if self.config.seeds > 1 else "")  # fmt: skip
        return Built(dictionaries, bank, batch, passes=passes)

    def _size(self, count: int, dim: int) -> int:
        """Number of units, as the number of images allows."""
        most = max(2, count // 8)
        wanted = self.config.size or (256 if self.clusters else 8 * dim)
        if self.config.size is not None and wanted > most and self.file is None:
            log.warning("method.size=%d: %d training images are enough for %d units (8 images for each): "
                        "as many are used", wanted, count, most)  # fmt: skip
        return min(wanted, most)

    def _first(self, x: Tensor, mean: Tensor, size: int, seed: int) -> Tensor:
        """Atoms at the start, or centres that atoms are mixed of."""
        generator = torch.Generator().manual_seed(STREAM + seed)
        if self.config.dictionary == "archetypal":
            away = centre(some_rows(x, max(ROWS, 8 * size), seed).float(), mean)
            centres = spherical_kmeans(away, min(4 * size, len(away)), seed=seed)[0]
            return centres[torch.randperm(len(centres), generator=generator)]
        noise = normalize(torch.randn(size, x.shape[1], generator=generator), dim=1)
        if self.config.start == "random":
            return noise
        rows = torch.randperm(len(x), generator=generator)[:size]
        return 0.8 * centre(x[rows].float(), mean) + 0.2 * noise

    def _found(self, data: FeatureData, size: int, seed: int) -> Found:
        """A dictionary that needs no training."""
        code = self.config.encode == "code"
        if self.file is not None:
            return from_file(self.file, data.train.x, self.mean, self.config.k, code)
        if self.config.dictionary == "random":
            found = random_units(data, size, self.k, seed)
        else:
            found = clusters(self.config.dictionary, data, size, self.mean, seed)
        return found.coded(self.k, self.mean) if code else found

    def leave(self, folder: Path) -> None:
        """Write ``dictionary.safetensors``, all units with their encoder, and the other dictionaries' atoms under
        ``seeds/``."""
        if self.found is None:
            return
        source, layer = f"cbm, method.dictionary={self.config.dictionary}", self.found.layer
        atoms, mean = self.found.atoms, self.mean if layer is None else layer.mean
        whole = Dictionary(atoms, mean, scale=1.0, source=source)
        if isinstance(layer, UnitCode):
            whole = Dictionary(
                layer.atoms, layer.mean, self.found.directions, -layer.offset, layer.threshold,
                min(int(layer.k), len(atoms)) or None, scale=1.0, subtracts=False, source=source,
            )  # fmt: skip
        write_dictionary(folder / "dictionary.safetensors", whole)
        for number, other in enumerate(self.seeds, start=1):
            write_dictionary(
                folder / "seeds" / f"{number}.safetensors", Dictionary(other, self.mean, scale=1.0, source=source)
            )

    def loss(self, model: Dictionaries, x: Tensor, y: Tensor, concepts: Tensor | None = None) -> Tensor:
        """The sum of the dictionaries' losses; arguments as for ``Method.loss``."""
        aux = self.config.aux_k if self.config.dead == "aux" else 0
        losses = [autoencoder_loss(each, x, dead_after=self.dead_after, aux=aux) for each in model]
        if self.config.dead == "resample":
            for each in model:
                replace_dead(each, x, dead_after=self.dead_after)
        return torch.stack(losses).sum()

    def validate(
        self, model: Dictionaries, x: Tensor, y: Tensor, concepts: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Reconstruction error of the dictionaries from the k strongest units; arguments as for ``Method.loss``."""
        with torch.no_grad():
            parts = x.split(8192)
            errors = [float(validation_error(each, part)) * len(part) for part in parts for each in model]
        return torch.tensor(sum(errors) / len(x)), None

    def optimizer(self, model: Dictionaries) -> torch.optim.Optimizer:
        """Adam that keeps atoms at length 1."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        warmup = min(WARMUP, max(1, self.steps // 10))
        return DictionaryAdam(list(model), parameters, lr=self.lr, total=self.steps, warmup=warmup)

    # ---------------------------------------------------------------------------------------------- names and a head

    def finish(self, built: Built, data: FeatureData) -> tuple[ConceptBottleneck, ConceptBank]:
        """Leave out units that never fire, name the others, and solve the head.

        Raises:
            UserError: no unit fires, or all are left out.
        """
        found: Found | Dictionaries = built.model
        if isinstance(found, Dictionaries):
            first, *others = found
            self.seeds = [each.atoms().detach() for each in others]
            found = Found(first.encoder.detach(), first.atoms().detach(), first.code())
            if self.config.encode == "code":
                found = found.coded(self.k, start_of(found))
        self.found = found
        fires = self._codes(found, data.train)
        lives = torch.bincount(fires.columns[fires.columns >= 0], minlength=len(found.atoms)) > 0
        if not bool(lives.any()):
            if self.file is not None:
                raise UserError(f"no unit of '{self.file}' fires on a training image: it was made of other features, "
                                "or of features of another length")  # fmt: skip
            raise UserError("no unit fires on a training image: choose a smaller method.lr or method.penalty, or "
                            "another dictionary")  # fmt: skip
        self.facts["dead"] = float((~lives).double().mean())
        if self.facts["dead"] > 0.5:
            log.warning("%.0f %% of the units fire on no training image: fewer units (method.size=%d), or "
                        "method.start=data, leave fewer dead", 100 * self.facts["dead"], int(lives.sum()))  # fmt: skip
        self.facts |= stability(found.atoms[lives], self.seeds, data)
        names = self._names(found, fires, data, built.bank)
        keep = lives
        if self.config.naming.unnamed == "drop":
            keep = lives & (torch.zeros_like(lives) if names is None else names.named)
            if not bool(keep.any()):
                raise UserError("method.naming.unnamed=drop leaves no unit: none has a name")
        again = None if not self.seeds else match_dictionaries(found.atoms, self.seeds[0]).cosine
        bank = unit_bank(found.atoms, keep, lives, names, built.bank, fires, again, data, self._source(), found.crops)
        model = self._with_head(found.take(keep.nonzero().flatten()), data)
        return model, bank

    def _source(self) -> str:
        return f"{self.config.dictionary} on the training images"

    def _codes(self, found: Found, split: FeatureSplit) -> Codes:
        """Which units fire on images, and how strongly; of clusters, the k nearest."""
        if found.layer is not None:
            return found.layer.code(split.x, found.directions)
        return nearest_units(split.x, found.atoms, self.mean, self.k)

    def _names(self, found: Found, fires: Codes, data: FeatureData, vocabulary: ConceptBank | None) -> UnitNames | None:
        """The words of the units, and beside them those of random directions; None without a vocabulary."""
        if vocabulary is None or self.is_control:
            return None
        naming = Naming(data, vocabulary, self.config.naming, centred=not self.released)
        names, facts = naming.name(found.atoms, fires, self._codes(found, data.val))
        if self.released:  # every unit has a name, whatever it is worth
            names = replace(names, named=torch.ones_like(names.named))
        null = random_units(data, min(len(found.atoms), 1024), self.k, data.seed + 1)
        random, of_random = naming.name(null.atoms, self._codes(null, data.train), self._codes(null, data.val))
        common = float(random.cosine[:, 0].quantile(0.95))
        nearer = names.cosine[:, 0] > common
        if self.config.naming.above_random:
            facts["name_named"] *= float((names.named & nearer).sum() / names.named.sum().clamp(min=1))
            names = replace(names, named=names.named & nearer)
            facts["name_distinct"] = float(len(names.words[names.named, 0].unique()))
            passed = random.named & (random.cosine[:, 0] > common)
            of_random["name_named"] *= float(passed.sum() / random.named.sum().clamp(min=1))
        self.facts |= facts
        beside = ("name_cosine", "name_auroc", "name_named")
        self.facts |= {f"{key}_null": of_random[key] for key in beside if key in of_random}
        lives = torch.bincount(fires.columns[fires.columns >= 0], minlength=len(nearer)) > 0
        self.facts["name_cosine_null_q95"] = common
        self.facts["name_cosine_above_null"] = mean_of(nearer[lives])
        log.info("discovered: %.0f %% of the units that can be tested have a name (random directions %.0f %%, by the "
                 "words of others %.0f %%)", 100 * facts["name_named"], 100 * of_random["name_named"],
                 100 * facts["name_named_dealt"])  # fmt: skip
        return names

    def _with_head(self, found: Found, data: FeatureData) -> ConceptBottleneck:
        """The units with a sparse head."""
        if found.layer is None:
            return fit_sparse_head(data, found.directions, self.head)
        codes = found.layer.code(data.train.x, found.directions)
        count = len(found.directions)
        found.layer.typical = codes.typical(count)
        scores = SparseScores(codes.values, codes.columns, count)
        tried = found.layer.code(data.val.x, found.directions)
        head = solve_sparse_head(scores, data, self.head, lambda w, b: tried.reconstruct(w.T) + b)
        spread = torch.where(scores.inverse_std > 0, 1 / scores.inverse_std, 0.0)
        return ConceptBottleneck(found.directions, head, spread=spread, activation=found.layer)


def stability(atoms: Tensor, others: list[Tensor], data: FeatureData) -> dict[str, float]:
    """How far another dictionary has the same units, and two draws of random directions do; nothing without another."""
    if not others:
        return {}
    found = match_dictionaries(atoms, others[0])
    null = [random_units(data, len(each), 1, data.seed + 2 + i).atoms for i, each in enumerate((atoms, others[0]))]
    drawn = match_dictionaries(*null)
    return {
        "stability_cosine": found.mean,
        "stability_cosine_null": drawn.mean,
        "stability_matched": found.matched,
        "stability_matched_null": drawn.matched,
    }


def learning_rate(size: int) -> float:
    """Largest learning rate for a number of units: the larger a dictionary, the smaller (Gao et al., ICLR 2025)."""
    return min(0.03, 0.25 / math.sqrt(size))


def passes_of(steps: int) -> int:
    """Passes over the data of so many steps each, if none are said.

    >>> passes_of(8), passes_of(313)
    (188, 50)
    """
    return math.ceil(min(max(PASSES * steps, STEPS[0]), max(STEPS[1], steps)) / steps)


def _distance(x: Tensor, mean: Tensor) -> float:
    """Root mean square distance of the rows from the mean."""
    total = sum(float((part.float() - mean).square().sum(dtype=torch.float64)) for part in x.split(65536))
    return math.sqrt(total / len(x))


@torch.no_grad()
def _released_start(dictionary: Autoencoder) -> None:
    """The start of the released code: its three-dimensional weights make the initialiser take the number of inputs for
    F times too large, so that encoder rows are √F times shorter than meant."""
    count, dim = dictionary.encoder.shape
    bound = math.sqrt(6 / (count * dim))
    dictionary.encoder.uniform_(-bound, bound)
    dictionary.offset.uniform_(-1 / math.sqrt(count), 1 / math.sqrt(count))
