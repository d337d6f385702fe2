"""``train``: a configuration in, a run directory out. Reads top to bottom as a run goes."""

import logging
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from cbm.concepts import ConceptBank, apply_control, clean_class_names
from cbm.concepts.candidates import (
    ConceptImages,
    candidate_bank,
    class_bank,
    concept_images,
    learn_bank,
    learns_concepts,
)
from cbm.concepts.own_labels import other_concepts
from cbm.concepts.prepare import warn_shared_reference
from cbm.config import DatasetConfig, check_settings, choose_encoder, report_form
from cbm.data import FeatureData, ImageDataset, few_shot
from cbm.data.claims import check_claim
from cbm.data.crops import encode_crops
from cbm.data.encoded import Encoding, encode_splits, read_images
from cbm.data.text_store import EncodeText, text_encoder
from cbm.editing.domains.source_card import source_card
from cbm.encoders import load_encoder
from cbm.encoders.base import LOGIT_SCALE, Encoder
from cbm.errors import UserError
from cbm.files.console import failing_softly
from cbm.files.pictures import VERSION
from cbm.files.run_directory import PREDICTIONS, RunDirectory, choose_run_directory, finished_run, read_metrics
from cbm.layers import ConceptBottleneck, linear_or_none, save_model
from cbm.methods import METHODS, Method, create_method, fit_method
from cbm.methods.teacher import check_teacher, load_teacher
from cbm.metrics.decisions import decide, group_headline, headline_intervals, keep_decisions
from cbm.metrics.evaluate import cut_points, evaluate_split
from cbm.metrics.found_units import unit_metrics
from cbm.metrics.integrity import Integrity, beyond_fact
from cbm.metrics.leakage import model_leakage
from cbm.metrics.nec import SparseHead, resolve_heads, save_heads
from cbm.metrics.purity import quality_metrics
from cbm.report import write_report
from cbm.report.concept_table import write_concept_table
from cbm.report.evidence import not_counted
from cbm.report.labels import write_label_table
from cbm.report.result import RunResult
from cbm.run.announce import announce
from cbm.run.controls import fit_baselines, label_controls
from cbm.run.evidence import Subject, gather_evidence
from cbm.run.label_evidence import gather_label_evidence
from cbm.run.reader import load_reader, with_reading
from cbm.run.tracking import create_wandb_logger, log_results

log = logging.getLogger("cbm")


def train(cfg: DictConfig) -> dict[str, float]:
    """Train as configured and write the run directory.

    A sweep (``train.py -m``) skips runs that are finished already, so that an interrupted sweep can be continued.

    Args:
        cfg: a ``cbm.config.TrainConfig``.

    Returns:
        The contents of ``metrics.json``.

    Raises:
        UserError: something is wrong with the configuration or the data.
    """
    began = time.perf_counter()
    forget_peak()
    choose_encoder(cfg)
    if in_sweep() and (found := finished_run(cfg)):
        log.info("%s is there already", found)
        return read_metrics(found)
    method = create_method(cfg.method)  # wrong settings are found before anything is read
    check_settings(cfg)
    check_teacher(method, cfg)
    if cfg.trainer.threads is not None:
        torch.set_num_threads(cfg.trainer.threads)
    images = read_training_images(cfg)
    path = choose_run_directory(cfg)
    clock = Clock()
    inputs = gather(method, cfg, images, clock)
    run = RunDirectory(path, cfg)
    log.info("%s %s", "going on in" if run.resumed else "writing to", run.path)
    dataset, data, candidates = encode(method, cfg, inputs, clock)
    with clock("fit"):
        logger = wandb_logger(cfg, run.path)
        bank = candidates and apply_control(candidates, cfg.concepts.control, cfg.seed)
        model, bank = fit_method(
            method,
            data,
            bank,
            inputs.logit_scale,
            seed=cfg.seed,
            trainer=cfg.trainer,
            run_path=run.path,
            logger=logger,
        )
        facts = dict(method.facts)
    with clock("nec"):
        heads = resolve_nec(model, bank, data, list(cfg.nec))
    metrics = {**evaluate_split(model, bank, data, "val", heads), **evaluate_split(model, bank, data, "test", heads)}
    decisions = decide(model, bank, data, "test", heads)
    metrics |= headline_intervals(decisions, "test") | group_headline(decisions, data, "test")
    metrics |= {f"method/{key}": value for key, value in facts.items()}
    metrics |= certificates(heads)
    with clock("controls"):
        again = candidates if method.concepts_from in ("bank", "features") else None
        integrity, measured = examine(method, model, bank, data, again, cfg, inputs, facts, metrics)
        metrics |= measured
        leakage = None if data.many or not cfg.controls else model_leakage(model, bank, data, seed=cfg.seed)
        if leakage is not None:
            metrics |= leakage.metrics() | quality_metrics(model, bank, data, seed=cfg.seed)
        if integrity is not None:
            integrity = replace(integrity, evidence=(*integrity.evidence, *beyond_fact(leakage)))
    baselines = {}
    if report_form(cfg.report) != "none":
        tower = text_tower(inputs.encoder, cfg)
        baselines = fit_baselines(method, data, cfg, inputs.encoder, tower, inputs.logit_scale)
    metrics |= sizes(data, bank)
    metrics |= {"time/total_s": round(time.perf_counter() - began, 3), **clock.metrics(), **memory()}

    result = RunResult(run.path, cfg, model, bank, data, dataset, metrics, heads, integrity, baselines, leakage)
    keep_decisions(path / PREDICTIONS, decisions, data.classes, dataset.name, "test")
    save(run, result, inputs.encoder, method)
    show(result, logger)
    return metrics


def examine(
    method: Method,
    model: nn.Module,
    bank: ConceptBank | None,
    data: FeatureData,
    candidates: ConceptBank | None,
    cfg: DictConfig,
    inputs: "Inputs",
    facts: dict[str, float],
    metrics: dict[str, float],
) -> tuple[Integrity | None, dict[str, float]]:
    """The evidence for the concepts of a model with a linear head, and its numbers; None and nothing without one.

    Args:
        method: the method of the run.
        model: the trained classifier.
        bank: the concepts of its columns, or None.
        data: encoded splits.
        candidates: the concepts for controls that are fitted; None for none.
        cfg: a ``cbm.config.TrainConfig``.
        inputs: the encoders of the run.
        facts: what the method said about its fit.
        metrics: what was measured so far.
    """
    bottleneck = linear_or_none(model, bank)
    if not cfg.controls or method.concepts_from not in ("bank", "labels", "features") or not bank:
        return None, {}
    if data.many:
        controls = label_controls(method, model, bank, data, candidates, cfg, inputs.logit_scale, facts)
        if bottleneck is None:
            return None, controls
        reads = inputs.teacher or inputs.encoder
        subject = Subject(bottleneck, bank, data, cfg, reads, text_tower(reads, cfg), facts)
        found, values = gather_label_evidence(subject, controls)
        return found, controls | values
    if bottleneck is None:
        if method.concepts_from == "bank":
            log.warning("method=%s has no linear head on concepts: its concepts are not tested", cfg.method.name)
        return None, {}
    reads = inputs.teacher or inputs.encoder
    subject = Subject(bottleneck, bank, data, cfg, reads, text_tower(reads, cfg), facts)
    found, values = gather_evidence(subject, candidates, metrics.get("test/accuracy_nec5_resolved"), inputs.logit_scale)
    return found, values | unit_metrics(bottleneck, bank, data, seed=cfg.seed)


def certificates(heads: list[SparseHead]) -> dict[str, float]:
    """How near the optimum the re-solved heads are, with the keys of ``metrics.json``."""
    keys = ("nec", "gap", "kkt")
    return {f"nec/resolved{head.target}_{key}": getattr(head, key) for head in heads for key in keys}


def sizes(data: FeatureData, bank: ConceptBank | None) -> dict[str, float]:
    """How many images, classes and concepts there are, with the keys of ``metrics.json``."""
    found = {f"data/n_{name}": float(len(split)) for name, split in data.splits.items()}
    found |= {f"data/n_skipped_{name}": float(len(names)) for name, names in data.skipped.items()}
    found["data/n_classes"] = float(len(data.classes))
    return found if bank is None else found | {"model/n_concepts": float(len(bank))}


def in_sweep() -> bool:
    """Whether this run is part of a Hydra sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


# ------------------------------------------------------------------------------------------------------ what goes in


def read_training_images(cfg: DictConfig) -> ImageDataset:
    """Read the data set of a run, and check the number of shots before hours of encoding.

    Raises:
        UserError: there are no training images, or too few images of a class.
    """
    dataset = read_images(cfg.dataset, Path(cfg.cache))
    if "train" not in dataset.splits:
        raise UserError(f"data set '{dataset.name}' has no pictures to train on: it is for evaluation")
    METHODS.find(cfg.method.name).check_task(dataset.task)
    if dataset.template and cfg.dataset.template == DatasetConfig.template:  # the user's own prompt goes first
        cfg.dataset.template = dataset.template
    few_shot(dataset.splits["train"].labels, cfg.shots, cfg.seed, dataset.classes)
    few_shot(dataset.splits["val"].labels, cfg.val_shots, cfg.seed, dataset.classes, "val_shots")
    return dataset


@dataclass(frozen=True)
class Inputs:
    """The inputs of a run, before the long work of encoding.

    Attributes:
        images: the data set.
        encoder: the frozen encoder; None if the features are given and nothing is known of what made them.
        teacher: text-image model that scores the concepts, if it is not the encoder.
        candidates: the concepts to choose from; None if there are none, or if they are learned from images.
        concept_images: images that concepts are learned from, or None.
        reader: independent text encoder that reads the names of the concepts, or None.
    """

    images: ImageDataset
    encoder: Encoder | None
    teacher: Encoder | None
    candidates: ConceptBank | None
    concept_images: ConceptImages | None
    reader: Encoder | None = None

    @property
    def logit_scale(self) -> float:
        """Factor on cosines; that of CLIP if no encoder says another."""
        return LOGIT_SCALE if self.encoder is None else self.encoder.logit_scale


def gather(method: Method, cfg: DictConfig, images: ImageDataset, clock: "Clock") -> Inputs:
    """Load the encoder and the teacher of a run, and read its candidate concepts.

    Args:
        method: the method of the run.
        cfg: a ``cbm.config.TrainConfig``.
        images: the data set.
        clock: measures the time.
    """
    with clock("encode"):
        encoder = None if cfg.encoder is None else load_encoder(cfg.encoder)
        check_class_names(method, cfg, encoder)
        check_claim(images, encoder)
        teacher = load_teacher(method, cfg, encoder)
    with clock("concepts"):
        reader = teacher or encoder
        if cfg.concepts.class_embeddings is not None:
            class_bank(cfg, images.classes, encoder, text_tower(reader, cfg))  # what is wrong with it is found now
        candidates = candidate_bank(method.concepts_from, cfg, images, reader, text_tower(reader, cfg))
        shown = concept_images(cfg, images) if learns_concepts(method.concepts_from, cfg) else None
        independent = load_reader(cfg, encoder, teacher)
    return Inputs(images, encoder, teacher, candidates, shown, independent)


def encode(
    method: Method, cfg: DictConfig, inputs: Inputs, clock: "Clock"
) -> tuple[ImageDataset, FeatureData, ConceptBank | None]:
    """Encode the images of a run.

    Args:
        method: the method of the run.
        cfg: a ``cbm.config.TrainConfig``.
        inputs: the images, the encoders and the candidate concepts.
        clock: measures the time.

    Returns:
        The images that were used, their features, and the candidate concepts.
    """
    with clock("encode"):
        teacher = None if inputs.teacher is None else (inputs.teacher, Encoding.of(cfg, cfg.teacher))
        splits = ("train", "val", "test")
        dataset, data = encode_splits(inputs.images, inputs.encoder, Encoding.of(cfg), splits, teacher)
        if method.reads_crops:
            label = f"{dataset.name}/train (crops)"
            crops = encode_crops(dataset.splits["train"].images, inputs.encoder, Encoding.of(cfg), label)
            data = replace(data, crops=crops)
        if method.reads_class_names:
            data = replace(data, class_embeddings=embed_class_names(data.classes, inputs, cfg))
        if data.many and (tower := inputs.teacher or inputs.encoder) is not None and tower.has_text:
            sentences = negative_sentences(dataset, cfg)
            data = replace(data, negative_embeddings=text_tower(tower, cfg)(sentences))
    candidates = inputs.candidates
    if inputs.concept_images is not None:
        with clock("concepts"):
            candidates = learn_bank(inputs.concept_images, data, inputs.encoder, cfg)
    if candidates is not None and candidates.embeddings is not None:
        warn_shared_reference(candidates, (data.teacher or data).train.x)
    if inputs.reader is not None and candidates is not None:
        with clock("concepts"):
            candidates = with_reading(candidates, data.classes, inputs.reader, cfg)
    return dataset, data, candidates


def embed_class_names(classes: list[str], inputs: Inputs, cfg: DictConfig) -> Tensor:
    """Embeddings ``[C, E]`` of the class names, by a text tower or from ``concepts.class_embeddings``."""
    if cfg.concepts.class_embeddings is not None:
        return class_bank(cfg, classes, None, text_tower(None, cfg)).directions()
    return text_tower(inputs.teacher or inputs.encoder, cfg)(clean_class_names(classes))


def negative_sentences(dataset: ImageDataset, cfg: DictConfig) -> list[str]:
    """Sentences ``[L]`` that say an image does not show a label: ``dataset.negative_template``, else that of the data
    set, else the prompt of the label with "no" before its name."""
    template = cfg.dataset.negative_template or dataset.negative_template or cfg.dataset.template.replace("{}", "no {}")
    if "{}" not in template:
        raise UserError(f"dataset.negative_template='{template}' has no place {{}} for the name of the label")
    return [template.format(name) for name in clean_class_names(dataset.classes)]


def text_tower(encoder: Encoder | None, cfg: DictConfig) -> EncodeText:
    """A function from phrases to features, which keeps them in the run's feature store; it raises an error if features
    are given and nothing is known of what made them."""
    if encoder is not None:
        return text_encoder(encoder, Path(cfg.cache), cfg.trainer.progress)

    def refuse(texts: list[str]) -> Tensor:
        raise without_text(
            cfg,
            "concepts with embeddings of their own (concepts=FILE.npz with names and vectors, bank.json beside "
            "embeddings.safetensors, or concepts.embeddings=FILE)",
        )

    return refuse


def check_class_names(method: Method, cfg: DictConfig, encoder: Encoder | None) -> None:
    """Check that a method which reads class names can.

    Raises:
        UserError: features are given, and no embeddings of class names.
    """
    reads = method.reads_class_names or method.concepts_from == "class_names"
    if reads and encoder is None and cfg.teacher is None and cfg.concepts.class_embeddings is None:
        cutoff = ", or method.class_cutoff=null" if "class_cutoff" in cfg.method else ""
        raise without_text(cfg, f"embeddings of the class names (concepts.class_embeddings=FILE){cutoff}")


def without_text(cfg: DictConfig, needs: str) -> UserError:
    """The line that says what a method needs where features come without a text tower, and which methods do without."""
    plain = [f"method={name}" for name, kind in METHODS.items() if kind.concepts_from is None]
    labelled = [f"method={name}" for name, kind in METHODS.items() if kind.concepts_from == "labels"]
    return UserError(
        f"features come without a text tower: method={cfg.method.name} needs {needs}, or encoder=NAME if that made the "
        f"features; without either there are {' and '.join(plain)}, and where the data set labels concepts "
        f"{', '.join(labelled)} and concepts=cav"
    )


def resolve_nec(model: nn.Module, bank: ConceptBank | None, data: FeatureData, counts: list[int]) -> list[SparseHead]:
    """Solve new sparse heads on the model's concepts.

    Args:
        model: the trained classifier.
        bank: the concepts of its columns, or None.
        data: encoded splits, of which the training split is used.
        counts: numbers of concepts per class.
    """
    if not isinstance(model, ConceptBottleneck) or bank is None:
        return []
    if counts:
        each = "label" if data.many else "class"
        log.info("solving sparse heads on %d concepts at %s per %s", len(bank), ", ".join(map(str, counts)), each)
    return resolve_heads(model, data.train, len(data.classes), counts, other_concepts(bank, data) if counts else None)


# ----------------------------------------------------------------------------------------------------- what comes out


def save(run: RunDirectory, result: RunResult, encoder: Encoder | None, method: Method) -> None:
    """Write the model and the metrics, and mark the run as finished.

    Args:
        run: the run directory.
        result: the trained model with its metrics.
        encoder: the frozen encoder, or None.
        method: the method, which may have more to leave.
    """
    path, data = result.path, result.data
    save_model(result.model, path / "model.safetensors")
    if data.many:
        write_label_table(path / "label_metrics.csv", result)
    else:
        card = source_card(data.val.x, data.val.y, len(data.classes), result.cfg.seed)
        card.save(path / "source_card.safetensors")
    if result.heads:
        save_heads(list(result.heads), path / "nec.safetensors")
    if result.bank is not None:
        result.bank.save(path / "bank")
    write_concept_table(path / "concepts.csv", result)
    method.leave(path)
    run.write_json("about.json", about(result, encoder))
    run.write_json("metrics.json", result.metrics)
    run.finish()


def about(result: RunResult, encoder: Encoder | None) -> dict[str, Any]:
    """The contents of ``about.json``."""
    integrity = result.integrity
    task = {"task": "many"} if result.data.many else {}
    return {
        "classes": result.data.classes,
        **task,
        "dim": result.data.dim,
        "encoder": encoder
        and {
            "id": encoder.id,
            "fingerprint": encoder.fingerprint,
            "dim": encoder.dim,
            "logit_scale": encoder.logit_scale,
            "preprocess": " ".join(repr(encoder.preprocess).split()),
            "pixels": VERSION,
        },
        "cut_points": cut_points(result.model, result.bank, result.data),
        "verdict": integrity and "; ".join(filter(None, (integrity.verdict, not_counted(result.metrics)))),
        "integrity": integrity and asdict(integrity),
        "baselines": result.baselines,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torch_threads": torch.get_num_threads(),
        },
    }


def show(result: RunResult, logger: Any) -> None:
    """Write the report and log the results; because the run is finished, an error here is only a warning."""
    if report_form(result.cfg.report) != "none":
        with failing_softly(f"the report could not be written (again: python -m cbm report {result.path})"):
            write_report(result)
    if logger is not None:
        with failing_softly("not all results went to W&B"):
            log_results(logger, result)
    announce(result)


def wandb_logger(cfg: DictConfig, path: Path) -> Any:
    """The W&B logger, if the configuration asks for one."""
    if not cfg.logger.wandb:
        return None
    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    return create_wandb_logger(
        path, settings, project=cfg.logger.project, entity=cfg.logger.entity, tags=list(cfg.logger.tags)
    )


# --------------------------------------------------------------------------------------------------- time and memory


@dataclass
class Clock:
    """Measures the seconds of the parts of a run: ``with clock("fit"): ...``."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Add the seconds of the block to those of ``part``."""
        began = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began

    def metrics(self) -> dict[str, float]:
        """``time/PART_s`` of every part."""
        return {f"time/{part}_s": round(value, 3) for part, value in self.seconds.items()}


def forget_peak() -> None:
    """Start measuring the peak memory of this process (on Linux; elsewhere it is measured from the start)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def memory() -> dict[str, float]:
    """The peak memory of this process in MB, including mapped files."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return {}
    lines = status.read_text(encoding="utf-8", errors="replace").splitlines()
    peak = next((line.split()[1] for line in lines if line.startswith("VmHWM")), None)
    return {} if peak is None else {"memory/peak_mb": round(int(peak) / 1024, 1)}
