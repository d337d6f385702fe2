"""What units that were found are worth on test images: are their names true, and how much of a decision has none?"""

import torch
from torch import Tensor

from cbm.concepts.bank import ConceptBank
from cbm.concepts.readers import match_concepts
from cbm.data.features import FeatureData, FeatureSplit, mean_feature, spaced
from cbm.layers import Coded, ConceptBottleneck
from cbm.metrics.evaluate import accuracy
from cbm.metrics.nec import solve_heads
from cbm.metrics.reader import centre
from cbm.metrics.truth import auroc_matrix
from cbm.solvers import SparseScores, sparse_code

TRUE = 0.8
"""AUROC from which on a name counts as true."""
COUNTS = (5, 10, 20)
"""Units per image at which dictionaries are compared."""
ROWS = 10_000
"""Images that heads at equal sparsity are solved on, and as many that they are tried on: at even distances."""
NEC = 30
"""Units per class of these heads."""


@torch.no_grad()
def unit_metrics(model: ConceptBottleneck, bank: ConceptBank, data: FeatureData, *, seed: int = 0) -> dict[str, float]:
    """Metrics of a model whose concepts are units that were found; empty for others.

    Args:
        model: the bottleneck.
        bank: its units, whose embeddings are the atoms.
        data: encoded splits.
        seed: random seed of the exchange of names.

    Returns:
        With keys ``test/...``: ``unnamed_share``: share of the contributions to the predicted class that units without
        a name make; ``name_true`` and ``name_true_dealt``: share of the named units that have labels whose activation
        finds the images that show what the name says (AUROC of ``TRUE``), and with names dealt out anew;
        ``name_labelled``: their number; ``code_r2_best``: what matching pursuit would say by as many units (``code_r2``
        is what the encoder says by them); ``accuracy_l0_5``, ...: accuracy of equal heads (``NEC`` units per class) on
        codes of exactly so many units per image.
    """
    if not any("unit" in concept.provenance for concept in bank.concepts):
        return {}
    test = data.test
    named = torch.tensor([bool((c.provenance.get("unit") or {}).get("word")) for c in bank.concepts])
    values = {"unnamed_share": unnamed_share(model, test.x, named)}
    values |= name_truth(model, bank, named, data, seed)
    return {f"test/{key}": value for key, value in (values | equal_codes(model, bank, data)).items()}


def unnamed_share(model: ConceptBottleneck, x: Tensor, named: Tensor) -> float:
    """Share of the absolute contributions to the predicted class that come from units without a name.

    Args:
        model: the bottleneck.
        x: unit-norm features ``[N, D]``.
        named: units that have a name ``[K]``.
    """
    total = torch.zeros(2, dtype=torch.float64)
    for part in spaced(x, 4096).split(512):
        size = model.contributions(part, model(part).argmax(dim=1)).abs().double()
        total += torch.stack([size[:, ~named].sum(), size.sum()])
    return float(total[0] / total[1]) if total[1] else 0.0


def name_truth(
    model: ConceptBottleneck, bank: ConceptBank, named: Tensor, data: FeatureData, seed: int
) -> dict[str, float]:
    """Whether images on which a unit is active show what its name says, where the data set labels that."""
    test: FeatureSplit = data.test
    pairs = [(k, truth) for k, truth in match_concepts(bank.phrases, data.concept_names) if bool(named[k])]
    if test.concepts is None or not pairs:
        return {}
    columns, truth = ([pair[i] for pair in pairs] for i in (0, 1))
    active = torch.cat([model.activations(part)[:, columns] for part in test.x.split(2048)])
    auroc, _ = auroc_matrix(active, test.concepts[:, truth])
    own = auroc.diagonal()
    known = ~own.isnan()
    if not bool(known.any()):
        return {}
    generator = torch.Generator().manual_seed(seed)
    drawn = [auroc[torch.arange(len(pairs)), torch.randperm(len(pairs), generator=generator)] for _ in range(20)]
    dealt = torch.stack(drawn)
    return {
        "name_labelled": float(known.sum()),
        "name_true": float((own[known] >= TRUE).double().mean()),
        "name_true_dealt": float((dealt >= TRUE)[~dealt.isnan()].double().mean()),
        "name_auroc_label": float(own[known].mean()),
    }


def equal_codes(model: ConceptBottleneck, bank: ConceptBank, data: FeatureData) -> dict[str, float]:
    """Dictionaries side by side: best codes of equally many units over the atoms, and equal heads on them."""
    mean, atoms = mean_feature(data.train.x), torch.nn.functional.normalize(bank.directions().float(), dim=1)
    train = spaced(torch.arange(len(data.train)), ROWS)
    x, y = data.train.x[train].float(), data.train.y[train]
    values = {}
    if isinstance(model.activation, Coded):
        few = spaced(data.test.x, 4096).float()
        used = float(model.activation.code(few, model.concepts).count.double().mean())
        away = few - mean
        best = sparse_code(centre(few, mean), atoms, k=max(1, min(len(atoms), round(used))))
        rest = (centre(few, mean) - best.reconstruct(atoms)) * away.norm(dim=1, keepdim=True)
        values["code_r2_best"] = 1 - float(rest.square().sum() / (few - few.mean(dim=0)).square().sum())
    for count in (each for each in COUNTS if each <= len(atoms)):
        codes = sparse_code(centre(x, mean), atoms, k=count)
        scores = SparseScores(codes.values, codes.columns, len(atoms))
        head = solve_heads(scores, y, len(data.classes), [NEC])[0]
        tried = sparse_code(centre(spaced(data.test.x, ROWS).float(), mean), atoms, k=count)
        logits = tried.reconstruct(head.weight.T) + head.bias
        values[f"accuracy_l0_{count}"] = accuracy(logits, spaced(data.test.y, ROWS))
    return values
