"""``python -m cbm name RUN --model NAME``: a model proposes names for units, and those that pass the test are taken.

The model sees training pictures. The test is that of the units' own words (``cbm.metrics.unit_names``): the text of a
proposal must tell where the unit fires, better than random words of the vocabulary do.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn.functional import normalize

from cbm.concepts import Concept, ConceptBank, drop_class_names, drop_unfit
from cbm.concepts.candidates import candidate_bank
from cbm.concepts.units import LONGEST, MODEL, find_unit, former_names, rename_unit
from cbm.data import FeatureData, ImageDataset
from cbm.data.encoded import Encoding, encode_splits
from cbm.data.features import mean_feature, spaced
from cbm.data.text_store import EncodeText, text_encoder
from cbm.encoders import load_encoder
from cbm.encoders.base import Encoder
from cbm.errors import UserError
from cbm.files.names import one_form
from cbm.files.run_directory import read_metrics
from cbm.layers import require_linear
from cbm.methods.unit_bank import ROWS, NamingConfig
from cbm.metrics.reader import centre
from cbm.metrics.unit_names import LEAST, mean_directions, name_units
from cbm.report.units import firing
from cbm.trained import TrainedModel, load
from cbm.trained.names import change_names, unit_states

if TYPE_CHECKING:  # needs the extra 'llm'
    from cbm.concepts.llm.endpoint import Endpoint

log = logging.getLogger("cbm")

SHOWN, SILENT = 8, 8
"""Pictures on which a unit fires most, and on which it does not, that the model sees."""


@dataclass(frozen=True)
class Proposal:
    """A name that a model proposed for a unit.

    Attributes:
        unit: name of the unit.
        text: the proposed name.
        auroc: how well it tells on which validation pictures the unit fires; None where it was not tested.
        p: share of random words that tell it as well; None where it was not tested.
        passed: whether it passed the test.
        taken: the unit's new name; None for a proposal that was not taken.
        why: reason why it was not taken; empty if it was.
    """

    unit: str
    text: str
    auroc: float | None
    p: float | None
    passed: bool
    taken: str | None
    why: str


def propose_names(
    run: Path,
    cache: Path,
    endpoint: "Endpoint",
    *,
    units: int = 20,
    only: str | None = None,
) -> list[Proposal]:
    """Have a model propose names for units, test them, and give those that pass to the units.

    Args:
        run: the run directory.
        cache: folder of the cache and the feature store.
        endpoint: the server, the model and the budget.
        units: number of unnamed units to ask about, those of most weight first.
        only: name of the one unit to ask about, named or not.

    Raises:
        UserError: no such run or unit, concepts that were written down, nothing that reads text, no pictures, or a
            server that does not answer; nothing is named then.
    """
    from cbm.concepts.llm.unit_pictures import UnitNamer

    model = load(run)
    bottleneck, bank = require_linear(model.model, model.bank), model.bank
    assert bank is not None
    if only is None:
        wanted = [bank.texts.index(state.text) for state in unit_states(model) if not state.unit.named][:units]
    else:
        wanted = [find_unit(bank, only)]
    if not wanted:
        log.info("every unit has a name: say --unit NAME to ask about one")
        return []
    dataset, data = model.read(("train", "val"), cache=cache, as_trained=True)
    if "val" not in data.splits:
        raise UserError("the data set has no validation pictures to test names on")
    if dataset.splits["train"].features is not None:
        raise UserError("only features are known, there are no pictures for the model to see: name units by hand "
                        "(--unit NAME --as NAME)")  # fmt: skip
    space = TextSpace(model, dataset, data, cache)
    k = model.config.method.get("k") or 3
    fires = [firing(bottleneck, data.splits[name].x, k) for name in ("train", "val")]
    namer = UnitNamer(endpoint, dataset.splits["train"].images, cache)
    shown = {column: pictures_of(column, *fires[0]) for column in wanted}
    said = namer.propose({column: rows for column, rows in shown.items() if rows[0]})
    log.info("%s proposed names for %d units (%d answers are new)", endpoint.model, len(said), namer.asker.tally.asked)
    pairs = [(column, text) for column, texts in said.items() for text in dict.fromkeys(map(one_form, texts)) if text]
    tested = space.test(pairs, bank.directions(), fires[0], fires[1][0])
    return take_names(model, endpoint.model, tested)


def pictures_of(column: int, columns: Tensor, values: Tensor) -> tuple[list[int], list[int]]:
    """Rows of the pictures on which a unit fires most, and of some on which it does not.

    Args:
        column: column of the unit.
        columns: units that fire on each picture ``[N, m]``; -1 for none.
        values: how strongly.
    """
    here = columns == column
    where, place = here.nonzero(as_tuple=True)
    top = where[values[where, place].argsort(descending=True, stable=True)][:SHOWN].tolist()
    silent = (~here.any(dim=1)).nonzero()[:, 0]
    some = torch.randperm(len(silent), generator=torch.Generator().manual_seed(column))[:SILENT]
    return top, silent[some].sort().values.tolist()


class TextSpace:
    """The space in which the run's pictures and phrases are compared: that of its encoder, or of its teacher.

    Args:
        model: the run.
        dataset: its pictures.
        data: their features.
        cache: folder of the feature store.

    Raises:
        UserError: nothing reads text there.
    """

    def __init__(self, model: TrainedModel, dataset: ImageDataset, data: FeatureData, cache: Path):
        cfg: Any = OmegaConf.merge(model.config, {"cache": str(cache)})
        self.cfg, self.classes, self.seed = cfg, model.classes, int(cfg.seed)
        seen = data
        reader: Encoder = model.encoder if cfg.get("teacher") is None else load_encoder(cfg.teacher)
        if cfg.get("teacher") is not None:
            seen = encode_splits(dataset, reader, Encoding.of(cfg, cfg.teacher).whole(), ("train", "val"))[1]
        if not reader.has_text:
            raise UserError("nothing reads text in this run, so that no proposal can be tested: name units by hand "
                            "(--unit NAME --as NAME), or train with teacher=NAME")  # fmt: skip
        self.encode_text: EncodeText = text_encoder(reader, cache, False)
        vocabulary = candidate_bank("features", cfg, dataset, reader, self.encode_text)
        assert vocabulary is not None
        self.texts = vocabulary.texts
        said = cfg.method.get("naming") or {}
        self.naming = NamingConfig(**{key: said[key] for key in ("fdr", "min_auroc") if key in said})
        centred = cfg.method.get("fidelity") != "released"
        words = normalize(vocabulary.directions().float(), dim=1)
        self.mean = words.mean(dim=0) if centred and len(words) > 1 else torch.zeros(words.shape[1])
        self.words = centre(words, self.mean)
        mean = mean_feature(seen.train.x) if centred else torch.zeros(seen.dim)
        self.train, self.val = (centre(seen.splits[name].x.float(), mean) for name in ("train", "val"))
        self.by_pictures = cfg.get("teacher") is not None or said.get("by") == "pictures"
        self.least = (
            read_metrics(model.path).get("method/name_cosine_null_q95", 0.0) if said.get("above_random") else None
        )

    def test(
        self, pairs: Sequence[tuple[int, str]], atoms: Tensor, train: tuple[Tensor, Tensor], fires: Tensor
    ) -> list[tuple[int, Proposal]]:
        """Test proposals; returns them with their units.

        Args:
            pairs: units' columns and the proposed texts.
            atoms: atoms ``[K, D]`` of the units.
            train: units that fire on each training picture ``[N, m]`` (-1 for none), and how strongly.
            fires: units that fire on each validation picture ``[N, m]``; -1 for none.
        """
        count = len(atoms)
        texts = list(dict.fromkeys(text for _, text in pairs))
        reasons = self._unfit(texts)
        fit = [(column, text) for column, text in pairs if text not in reasons]
        found = [(column, Proposal("", text, None, None, False, None, reasons[text])) for column, text in pairs
                 if text in reasons]  # fmt: skip
        if not fit:
            return found
        new = [text for text in dict.fromkeys(text for _, text in fit) if text not in self.texts]
        words = self.words
        if new:
            words = torch.cat([words, centre(normalize(self.encode_text(new).float(), dim=1), self.mean)])
        row = {text: number for number, text in enumerate([*self.texts, *new])}
        directions = words[[row[text] for _, text in fit]]
        columns = [column for column, _ in fit]
        shown = [
            (fires_of(fires, columns, count), self.val),
            (fires_of(spaced(train[0], ROWS), columns, count), spaced(self.train, ROWS)),
        ]
        names = name_units(
            directions, shown, words,
            fdr=self.naming.fdr, min_auroc=self.naming.min_auroc, seed=self.seed,
        )  # fmt: skip
        units = mean_directions(*train, count, self.train) if self.by_pictures else normalize(atoms.float(), dim=1)
        near = (directions * units[columns]).sum(dim=1)
        for n, (column, text) in enumerate(fit):
            passed, why = bool(names.named[n]), ""
            auroc, p = (None if value != value else value for value in (float(names.auroc[n]), float(names.p[n])))
            if auroc is None:
                why = f"the unit fires on {int(names.firing[n])} of {int(names.pictures[n])} training images; "
                why += f"a test needs {LEAST}"
            elif not passed:
                why = "it does not tell where the unit fires"
            elif self.least is not None and float(near[n]) <= self.least:
                passed, why = False, "it is no nearer to the unit than words are to random directions"
            found.append((column, Proposal("", text, auroc, p, passed, None, why)))
        return found

    def _unfit(self, texts: list[str]) -> dict[str, str]:
        """Reasons not to test some proposals: those for which the vocabulary's phrases are left out, too."""
        bank = ConceptBank("proposals", "proposals", tuple(Concept(text) for text in texts))
        if self.cfg.concepts.hygiene:
            bank = drop_unfit(bank, self.cfg.concepts.max_words)
        if self.cfg.concepts.remove_class_names != "none":
            bank = drop_class_names(bank, self.classes, "any")
        reasons = {dropped.text: dropped.reason for dropped in bank.dropped}
        return reasons | {text: f"longer than {LONGEST} letters" for text in texts if len(text) > LONGEST}


def fires_of(fires: Tensor, columns: Sequence[int], count: int) -> Tensor:
    """Which of several entries for units fire on each picture ``[N, M]`` (-1: none), where a unit may stand more than
    once.

    Args:
        fires: units that fire on each picture ``[N, m]``; -1 for none.
        columns: unit of every entry.
        count: number of units.

    >>> fires_of(torch.tensor([[1, 0], [0, -1]]), [0, 0, 1], 2).tolist()
    [[0, 1, 2], [0, 1, -1]]
    """
    table = torch.zeros(len(fires), count + 1, dtype=torch.bool)
    table.scatter_(1, torch.where(fires < 0, count, fires), True)
    here = table[:, list(columns)]
    return torch.where(here, torch.arange(len(columns)), -1)


def take_names(model: TrainedModel, by: str, tested: Sequence[tuple[int, Proposal]]) -> list[Proposal]:
    """Give every unit the best of its proposals that passed; returns all proposals, with what became of them.

    Args:
        model: the run.
        by: name of the model that proposed them.
        tested: proposals with the columns of their units.
    """
    assert model.bank is not None
    texts = model.bank.texts
    best: dict[int, Proposal] = {}
    for column, proposal in tested:
        if proposal.passed and (column not in best or (proposal.auroc or 0) > (best[column].auroc or 0)):
            best[column] = proposal
    names: dict[int, str] = {}

    def change(bank: ConceptBank) -> ConceptBank:
        for column, proposal in best.items():
            if bank.texts[column] != texts[column]:  # somebody else has named it meanwhile
                continue
            taken = {*bank.texts, *former_names(bank)}
            number, name = 2, proposal.text
            while name in taken and name != texts[column]:
                name, number = f"{proposal.text} ({number})", number + 1
            if name == texts[column]:
                continue
            said = {"model": by, "text": proposal.text, "auroc": proposal.auroc, "p": proposal.p}
            bank = rename_unit(bank, texts[column], name, MODEL, said)
            names[column] = name
        return bank

    if best:
        model.bank = change_names(model.path, change)
    found = []
    for column, proposal in tested:
        mine = best.get(column) is proposal
        taken = names.get(column) if mine else None
        why = proposal.why or ("" if taken else "the unit has this name already" if mine else "another one is better")
        found.append(Proposal(texts[column], proposal.text, proposal.auroc, proposal.p, proposal.passed, taken, why))
    return found
