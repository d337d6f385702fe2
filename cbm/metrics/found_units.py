"""What units that were found are worth on test images: are their names true, and how much of a decision has none?"""

import numpy as np
import torch
from torch import Tensor

from cbm.concepts.bank import ConceptBank
from cbm.concepts.readers import match_concepts
from cbm.data.features import FeatureData, FeatureSplit, mean_feature, spaced
from cbm.layers import Coded, ConceptBottleneck
from cbm.metrics.reader import centre
from cbm.metrics.truth import auroc_matrix
from cbm.solvers import sparse_code

TRUE = 0.8
"""AUROC from which on a name counts as true."""
COUNTS = (5, 10, 20)
"""Units per image at which dictionaries are compared."""
ROWS = 10_000
"""Images of each split on which dictionaries are compared, at most: at even distances."""
STRENGTHS = (10.0, 100.0, 1000.0, 10000.0)
"""Strengths of the ridge of these heads, of which validation chooses one."""


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
        is what the encoder says by them); ``accuracy_l0_5``, ...: accuracy of ridge classifiers on codes of exactly
        so many units per image.
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
    """Dictionaries side by side: best codes of equally many units over the atoms, and how well these tell the class."""
    mean, atoms = mean_feature(data.train.x), torch.nn.functional.normalize(bank.directions().float(), dim=1)
    values = {}
    if isinstance(model.activation, Coded):
        few = spaced(data.test.x, 4096).float()
        used = float(model.activation.code(few, model.concepts).count.double().mean())
        start = model.activation.mean  # what the encoder begins with, too: it may have learned another than the mean
        away = few - start
        best = sparse_code(centre(few, start), atoms, k=max(1, min(len(atoms), round(used))))
        rest = (centre(few, start) - best.reconstruct(atoms)) * away.norm(dim=1, keepdim=True)
        values["code_r2_best"] = 1 - float(rest.square().sum() / (few - few.mean(dim=0)).square().sum())
    for count in (each for each in COUNTS if each <= len(atoms)):
        values[f"accuracy_l0_{count}"] = ridge_accuracy(data, atoms, mean, count)
    return values


def ridge_accuracy(data: FeatureData, atoms: Tensor, mean: Tensor, count: int) -> float:
    """Test accuracy of a ridge classifier on codes of exactly ``count`` atoms; validation chooses its strength.

    Args:
        data: encoded splits, of each of which at most ``ROWS`` images are used.
        atoms: unit atoms ``[K, D]``.
        mean: mean feature ``[D]`` of the training images.
        count: atoms per image.
    """
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import RidgeClassifier

    tables, labels = [], []
    for split in (data.train, data.val, data.test):
        codes = sparse_code(centre(spaced(split.x, ROWS).float(), mean), atoms, k=count)
        used = codes.columns >= 0
        rows = used.nonzero()[:, 0].numpy()
        entries = codes.values[used].numpy(), (rows, codes.columns[used].numpy())
        tables.append(csr_matrix(entries, shape=(len(codes), len(atoms))))
        labels.append(spaced(split.y, ROWS).numpy())
    spread = np.sqrt(np.asarray(tables[0].multiply(tables[0]).mean(axis=0))).ravel()
    tables = [table.multiply(1 / np.maximum(spread, 1e-9)).tocsr() for table in tables]
    heads = [RidgeClassifier(alpha=strength).fit(tables[0], labels[0]) for strength in STRENGTHS]
    best = max(heads, key=lambda head: head.score(tables[1], labels[1]))
    return float(best.score(tables[2], labels[2]))
