"""SpLiCE: Bhalla et al., "Interpreting CLIP with Sparse Linear Concept Embeddings", NeurIPS 2024. A picture as a sum of
a few words; ``method=zcbm`` is the preset of Z-CBM (Yamaguchi et al., "Zero-shot Concept Bottleneck Models", 2025).

    x = mean + sum_k z_k c_k + rest          z >= 0, most of it exactly zero

with ``mean`` the mean of the training pictures, and ``c_k`` the unit text vectors of the words without their own mean.
The code z is the exact minimiser of ``|x~ - C^T z|^2 / 2 + lam sum z`` on ``x~``, the unit vector from the mean to the
picture (``cbm.solvers.sparse_code``, with a certificate for every picture), refitted on the words found and scaled by
the picture's distance from the mean. Heads on the code:

- ``sparse``: a certified elastic net, chosen by validation (as in post-hoc bottlenecks);
- ``names``: one non-negative gain on what every name says of the classes (``cbm.methods.name_tied``);
- ``none``: nothing is trained. ``untrained=zero_shot`` classifies ``mean + sum_k z_k c_k`` by the class names, as
  published; ``untrained=reader`` lets the names speak as an independent reader understands them.

``fidelity=released`` follows the released code: its penalty is twice ours (``lam`` is halved), the words' part has
length 1, and nothing is refitted.
"""

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cbm.concepts.bank import ConceptBank
from cbm.data.features import FeatureData, mean_feature, spaced
from cbm.errors import UserError
from cbm.kernels import topk_concepts
from cbm.layers import ConceptBottleneck, LinearHead
from cbm.layers.codes import RADII, SparseCode
from cbm.methods.base import Built, Method, one_of, register_method
from cbm.methods.named_head import NamesHeadConfig, check_names_head, what_names_say, with_named_head
from cbm.methods.sparse_head import SparseHeadConfig, check_sparse_head, solve_sparse_head
from cbm.metrics.reader import centre, centre_directions
from cbm.solvers import Codes, SparseScores, greedy_projection, penalty_for_count

log = logging.getLogger(__name__)

ROWS_FOR_PENALTY = 2000
RELEASED_PENALTY = 0.25  # of the released examples; twice ours


@dataclass
class SpliceConfig(NamesHeadConfig):
    """Settings of sparse codes over a vocabulary; None stands for the value that belongs to the other settings."""

    fidelity: str = "repaired"
    """repaired | released"""
    lam: float | None = None
    """Penalty of the code; null: the one at which pictures have ``l0`` words on average (0.25 if released)"""
    l0: float = 12.0
    """Mean number of words of a picture that the penalty is chosen for"""
    k: int | None = None
    """Exactly so many words for every picture, by orthogonal matching pursuit, instead of a penalty"""
    sign: str = "nonnegative"
    """nonnegative | free (Z-CBM): whether words may be subtracted"""
    refit: bool | None = None
    """Solve once more on the words found, without the penalty; null: true unless released"""
    centre: str = "training"
    """training: pictures and words are looked at from their means | none: as they are (Z-CBM)"""
    select: str | None = None
    """reconstruction: keep the words that together reconstruct the training pictures best (PCBM-ReD); null: keep all"""
    words: int = 512
    """Words that ``select`` keeps"""
    head: str = "sparse"
    """sparse | names | none"""
    untrained: str = "zero_shot"
    """How head=none decides: zero_shot (by the class names) | reader (by what other text knows of the words)"""
    l1_ratio: float = 0.99
    """Share of the l1 norm in the penalty of the sparse head"""
    head_lam: float | None = None
    """Penalty of the sparse head; null: chosen by validation"""
    max_nec: float = 30.0
    """Words per class at which the path of the sparse head ends"""


@register_method("splice")
class Splice(Method):
    """Sparse codes over a vocabulary, and a head that reads them or none."""

    Config = SpliceConfig
    trains = False

    def __init__(self, config: SpliceConfig):
        super().__init__(config)
        self.released = one_of("method.fidelity", config.fidelity, ("repaired", "released")) == "released"
        one_of("method.sign", config.sign, ("nonnegative", "free"))
        one_of("method.centre", config.centre, ("training", "none"))
        one_of("method.head", config.head, ("sparse", "names", "none"))
        one_of("method.untrained", config.untrained, ("zero_shot", "reader"))
        if config.select is not None:
            one_of("method.select", config.select, ("reconstruction",))
        check_names_head(config)
        for name, value, fits, expected in (
            ("lam", config.lam, config.lam is None or 0 < config.lam < math.inf, "a number > 0, or null"),
            ("l0", config.l0, 0 < config.l0 < math.inf, "a mean number of words, > 0"),
            ("k", config.k, config.k is None or config.k >= 1, "a number of words, 1 or more, or null"),
            ("words", config.words, config.words >= 2, "a number of words, 2 or more"),
        ):
            if not fits:
                raise UserError(f"method.{name}={value}: expected {expected}")
        if config.k is not None and config.lam is not None:
            raise UserError(f"method.k={config.k} and method.lam={config.lam} both say how many words: say one of them")
        if config.refit is None:
            config.refit = not self.released
        self.sparse = SparseHeadConfig(config.l1_ratio, config.head_lam, max_nec=config.max_nec)
        check_sparse_head(self.sparse, lam="head_lam")
        self.reads_class_names = config.head == "none" and config.untrained == "zero_shot"
        self.reads_owners = config.head == "names" or (config.head == "none" and not self.reads_class_names)

    def build(self, data: FeatureData, bank: ConceptBank | None, logit_scale: float) -> Built:
        """Choose the words and the penalty on the training pictures, and solve the head on their codes.

        Arguments as for ``Method.build``.

        Raises:
            UserError: no penalty leads to so many words, the names say nothing (``head=names``), or there are fewer
                words than ``method.k``.
        """
        bank = self.required(bank, "a concept bank")
        if self.reads_owners:
            what_names_say(bank, data.classes)  # an error before the codes, not after
        x = data.train.x
        mean = x.new_zeros(data.dim).float() if self.config.centre == "none" else mean_feature(x)
        words = self._directions(bank)
        if self.config.select is not None:
            bank, words = self._select(bank, words, x, mean)
        layer = self._layer(words, x, mean)
        codes = layer.code(x, words)
        if not bool((codes.columns >= 0).any()):
            raise self._no_words(x, words, mean)
        scores = SparseScores(codes.values, codes.columns, len(words))
        layer.typical = codes.typical(len(words))
        spread = torch.where(scores.inverse_std > 0, 1 / scores.inverse_std, 0.0)
        self._say(codes, bank)
        model = ConceptBottleneck(
            words, LinearHead(torch.zeros(len(data.classes), len(words))), spread=spread, activation=layer
        )
        if self.config.head == "names":
            plain = SparseScores(codes.values, codes.columns, len(words), std=torch.ones(len(words)))
            model, facts = with_named_head(model, bank, data, self.config, plain)  # as the reader reads them
            self.facts |= facts
        elif self.config.head == "sparse":
            tried = layer.code(data.val.x, words)
            head = solve_sparse_head(scores, data, self.sparse, lambda w, b: tried.reconstruct(w.T) + b)
            model = model.with_weights(head.weight(), head.bias)  # type: ignore[arg-type]
        else:
            model = model.with_weights(*self._untrained(data, bank, words, mean, codes, logit_scale))
        return Built(model, bank)

    def _no_words(self, x: Tensor, words: Tensor, mean: Tensor) -> UserError:
        """Why no training picture uses a word, and which penalty would let one."""
        highest = float(topk_concepts(centre(x.float(), mean), words, 1)[0].max())
        if highest <= 0 or self.config.k is not None:
            why = "the pictures are all alike, or so are the words"
            return UserError(f"no word correlates with a training picture: {why}")
        twice = " (times two: method.fidelity=released)" if self.released else ""
        return UserError(
            f"method.lam={self.config.lam or RELEASED_PENALTY:g}: no training picture uses a word; expected less than "
            f"{highest * (2 if self.released else 1):.3g}, the largest correlation of a word with a picture{twice}"
        )

    def _directions(self, bank: ConceptBank) -> Tensor:
        """Unit directions ``[K, D]`` of the words, without what all of them share if pictures are centred too."""
        if self.config.centre == "none":
            return normalize(bank.directions().float(), dim=1)
        return centre_directions(bank.directions())

    def _select(self, bank: ConceptBank, words: Tensor, x: Tensor, mean: Tensor) -> tuple[ConceptBank, Tensor]:
        """The words that together reconstruct the training pictures best, in the order in which they were chosen."""
        moment = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
        for part in x.split(16384):
            away = centre(part.float(), mean).double()
            moment += away.T @ away
        columns, share = greedy_projection(moment / len(x), words, min(self.config.words, len(words)))
        log.info("splice: kept %d of %d words, which span %.1f %% of what the training pictures differ in",
                 len(columns), len(words), 100 * float(share[-1]))  # fmt: skip
        kept = bank.take(columns.tolist())
        return kept, self._directions(kept)

    def _layer(self, words: Tensor, x: Tensor, mean: Tensor) -> SparseCode:
        """The layer that makes codes, with its penalty or its number of words."""
        config = self.config
        if config.k is not None and config.k > len(words):
            raise UserError(f"method.k={config.k}: there are {len(words)} words")
        lam = 0.0
        if config.k is None:
            lam = config.lam if config.lam is not None else RELEASED_PENALTY if self.released else 0.0
            lam = lam / 2 if self.released else lam
        if config.k is None and lam == 0.0:
            few = centre(spaced(x, ROWS_FOR_PENALTY).float(), mean)
            try:
                lam = penalty_for_count(few, words, config.l0)
            except ValueError as error:
                most = min(len(words), x.shape[1])
                why = str(error).partition("; ")[2]
                if config.l0 > most:
                    why = f"there are {len(words)} words in {x.shape[1]} dimensions; expected at most {most}"
                raise UserError(f"method.l0={config.l0:g}: {why} (or say method.k=NUMBER)") from error
        radius = "unit" if self.released else "picture" if self.reads_class_names else "fit"
        zeros = torch.zeros(len(words))
        return SparseCode(
            zeros, mean, zeros, lam, config.k or 0, config.sign == "free", bool(config.refit), RADII.index(radius)
        )

    def _untrained(
        self, data: FeatureData, bank: ConceptBank, words: Tensor, mean: Tensor, codes: Codes, logit_scale: float
    ) -> tuple[Tensor, Tensor]:
        """Weights ``[C, K]`` and biases ``[C]`` that no label has taught."""
        if not self.reads_class_names:
            says = what_names_say(bank, data.classes)
            spread = float(codes.reconstruct(says).std()) or 1.0
            return 4 * says.T / spread, torch.zeros(says.shape[1])  # a temperature changes no decision
        if data.class_embeddings is None or data.class_embeddings.shape[1] != data.dim:
            raise UserError(
                "method.untrained=zero_shot compares pictures with class names: it needs an encoder that reads text, "
                "or embeddings of the class names (concepts.class_embeddings=FILE)"
            )
        texts = normalize(data.class_embeddings.float(), dim=1)
        return logit_scale * texts @ words.T, logit_scale * texts @ mean

    def _say(self, codes: Codes, bank: ConceptBank) -> None:
        """One line about the codes of the training pictures."""
        count = codes.count.double()
        said = "" if self.config.k is not None else f", largest duality gap {float(codes.gap.max()):.0e}"
        log.info("splice: %.1f of %d words a training picture (at most %d)%s",
                 float(count.mean()), len(bank), int(count.max()), said)  # fmt: skip
        self.facts |= {"code_l0": float(count.mean()), "code_l0_max": float(count.max())}
        self.facts |= {"code_empty": float((count == 0).double().mean()), "code_passes": float(codes.passes)}
        if self.config.k is None:
            self.facts |= {"code_gap_max": float(codes.gap.max()), "code_violation_max": float(codes.violation.max())}
