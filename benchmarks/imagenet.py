"""A run of ImageNet's shape on this machine: selection and a LaBo head on 1.28 million features that stay on disk.

    python benchmarks/imagenet.py [--pictures 1281167 --dims 512 --classes 1000 --candidates 100 --per-class 50]
                                  [--validations 6] [--folder DIR] [--out benchmarks/results]

The features are generated: every class has a centre made of ten of its own phrases' directions, pictures are that and
noise around a common mean. They are written in half precision to DIR and mapped into memory; every stage says how long
it took and how much memory of its own the process held at most (what the system keeps of the mapped file is not in it,
and is given back when somebody needs it). Writes ``cpu_imagenet.md`` and ``cpu_imagenet.jsonl``.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from runner import Report, environment
from torch import Tensor
from torch.nn.functional import normalize

from cbm.concepts.bank import Concept, ConceptBank
from cbm.data import FeatureData, FeatureSplit
from cbm.data.shards import read_shard, write_rows
from cbm.kernels import score_moments, topk_concepts
from cbm.methods import create_method
from cbm.metrics.evaluate import accuracy, predict_logits, truncated_logits
from cbm.training import ConceptBottleneckModule, fit

PART = 65536


class Stages:
    """Seconds and the largest memory of every stage."""

    def __init__(self, report: Report):
        self.report = report

    @contextmanager
    def __call__(self, name: str, note: str = "") -> Iterator[None]:
        """Time a stage; memory is looked at ten times a second."""
        largest, over = [own_megabytes()], threading.Event()

        def watch() -> None:
            while not over.wait(0.1):
                largest.append(own_megabytes())

        watcher = threading.Thread(target=watch)
        watcher.start()
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        over.set()
        watcher.join()
        peak = max([*largest, own_megabytes()])
        self.report.add(name, f"{seconds:.0f}", f"{peak:.0f}", note)
        self.report.measurements.append({"stage": name, "seconds": seconds, "peak_mb": peak, "note": note})


def own_megabytes() -> float:
    """Memory of this process that is not backed by a file."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


def planted(classes: int, candidates: int, dims: int) -> tuple[Tensor, Tensor]:
    """Phrases ``[classes * candidates, D]``, class by class, and class centres ``[C, D]`` of ten phrases each."""
    g = torch.Generator().manual_seed(0)
    shared = torch.randn(dims, generator=g)
    phrases = normalize(torch.randn(classes * candidates, dims, generator=g) + 1.5 * shared, dim=1)
    own = phrases.view(classes, candidates, dims)[:, :10] - phrases.mean(dim=0)
    return phrases, 1.2 * shared + 1.2 * own.sum(dim=1)


def pictures(centres: Tensor, y: Tensor, seed: int) -> Iterator[Tensor]:
    """Unit-norm features of pictures with classes ``[N]``, in parts."""
    g = torch.Generator().manual_seed(seed)
    for labels in y.split(PART):
        yield normalize(centres[labels] + torch.randn(len(labels), centres.shape[1], generator=g), dim=1)


def split(folder: Path, name: str, centres: Tensor, count: int, seed: int) -> FeatureSplit:
    """Pictures in the file format of the feature store."""
    y = torch.randint(len(centres), (count,), generator=torch.Generator().manual_seed(seed))
    shape = (count, centres.shape[1])
    shard = read_shard(write_rows(folder, name, pictures(centres, y, seed + 1), shape, torch.float16))
    assert shard is not None
    return FeatureSplit(shard[0]["rows"], y, [str(i) for i in range(count)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1_281_167)
    parser.add_argument("--dims", type=int, default=512)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--candidates", type=int, default=100, help="phrases per class to select from")
    parser.add_argument("--per-class", type=int, default=50, help="of them that are kept")
    parser.add_argument("--validations", type=int, default=6, help="passes over the pictures, at most")
    parser.add_argument("--folder", type=Path, help="where the features go; a temporary folder by default")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    logging.basicConfig(level="INFO", format="%(message)s")
    logging.getLogger("lightning").setLevel("ERROR")
    with tempfile.TemporaryDirectory() as temporary:
        run(arguments, arguments.folder or Path(temporary)).write(arguments.out, environment("imagenet.py"))


def run(arguments: argparse.Namespace, folder: Path) -> Report:
    """All stages."""
    n, d, c, k = arguments.pictures, arguments.dims, arguments.classes, arguments.candidates
    report = Report(
        "imagenet", f"LaBo at the shape of ImageNet: {n:,} x {d} features in half precision on disk",
        ["stage", "seconds", "largest memory of its own, MB", ""],
    )  # fmt: skip
    stage = Stages(report)
    phrases, centres = planted(c, k, d)
    with stage("write the features", f"{n * d * 2 / 1e9:.1f} GB, in parts, with their checksum"):
        splits = {
            name: split(folder, name, centres, count, seed)
            for name, count, seed in (("train", n, 1), ("val", max(c, n // 50), 3), ("test", 50 * c, 5))
        }
    names = [f"class {i:04d}" for i in range(c)]
    concepts = tuple(Concept(f"phrase {j} of class {i}", (names[i],)) for i in range(c) for j in range(k))
    bank = ConceptBank("planted", "generated", concepts, embeddings=phrases)
    data = FeatureData(splits, names)
    with stage("mean and deviation of every score", f"{c * k:,} phrases"):
        score_moments(data.train.x, phrases)
    method = create_method({"name": "labo", "concepts_per_class": arguments.per_class})
    with stage("selection and start of the head", f"{arguments.per_class} of {k} phrases for each of {c:,} classes"):
        built = method.build(data, bank, 100.0)
        model, chosen = built.model, built.bank
        module = ConceptBottleneckModule(model, method.optimizer)
    size = built.batch_size or len(data.train)
    with stage("training", f"{len(chosen or ()):,} concepts x {c} classes, batches of {size:,}"):
        trainer = {"accelerator": "cpu", "devices": 1, "precision": "32-true"}
        fit(module, data, batch_size=built.batch_size, patience=3, max_epochs=arguments.validations, trainer=trainer)
    with stage("evaluation", f"{len(data.test):,} pictures, whole and with five concepts per class"):
        right = accuracy(predict_logits(model, data.test.x), data.test.y)
        right5 = accuracy(truncated_logits(model, data.test.x), data.test.y)  # type: ignore[arg-type]
    few = data.test.x[:2000].float()
    with stage("what 2,000 pictures show", f"top 16 of {len(chosen or ()):,} concepts"):
        assert chosen is not None
        topk_concepts(few, chosen.directions(), 16)
    report.remarks += [
        f"Test accuracy {right:.4f} (chance {1 / c:.4f}), {right5:.4f} with five concepts per class; "
        f"{len(module.history)} validations, best at step {module.best['step']}.",
        f"The scores of all pictures on the {len(chosen):,} concepts would be "
        f"{n * len(chosen) * 2 / 1e9:.0f} GB in half precision.",
        "Wall clock, all threads; the largest memory counts what the process holds itself, not the mapped file.",
    ]
    report.measurements.append({"accuracy": right, "accuracy_nec5": right5, "steps": module.history[-1]["step"]})
    return report


if __name__ == "__main__":
    main()
