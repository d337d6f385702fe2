"""``train`` and ``evaluate``: a configuration in, a run directory out. Reads top to bottom as a run goes."""

import importlib.util
import json
import logging
import math
import platform
import sys
import time
import warnings
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.logging import RichHandler
from torch import nn

from cbm.concepts import CONTROLS, ConceptBank, apply_control, clean_class_name, load_bank
from cbm.concepts.prepare import class_name_bank
from cbm.correction import correct, write_correction
from cbm.data import FeatureData, FeatureSplit, few_shot
from cbm.data.store import DTYPES
from cbm.editing import Comparison, changed_most, create_editor, edited_logits, edited_model, load_edits, load_gate
from cbm.editing.gate import Gate
from cbm.editing.source_card import source_card
from cbm.encoders.base import AUTOCAST, Encoder
from cbm.errors import UserError, did_you_mean
from cbm.evaluation import deleted_logits, evaluate_split, outside_share, predict_logits, truncated_logits
from cbm.files import resolve_path, write_atomically
from cbm.inputs import (
    candidate_bank,
    concept_pictures,
    encode_splits,
    learn_bank,
    learns_concepts,
    load_encoder,
    load_teacher,
    read_images,
    reorder_classes,
    text_encoder,
)
from cbm.layers import ConceptBottleneck, EnergyBottleneck, load_model, save_model
from cbm.methods import METHODS, Method, create_method
from cbm.metrics.grounding import concept_gaps
from cbm.metrics.integrity import (
    Integrity,
    chance_accuracy,
    integrity_from_json,
    renamed_accuracy,
    weigh_integrity,
)
from cbm.metrics.nec import SparseHead, load_heads, resolve_heads, save_heads
from cbm.module import ConceptBottleneckModule, fit, write_history
from cbm.run_directory import (
    RunDirectory,
    choose_run_directory,
    finished_run,
    open_run,
    read_about,
    read_metrics,
)

log = logging.getLogger("cbm")


# ---------------------------------------------------------------------------------------------------------------- train


def train(cfg: DictConfig) -> dict[str, float]:
    """Train as configured (``cbm.config.TrainConfig``) and write the run directory.

    A sweep (``train.py -m``) passes over the runs that are finished, so an interrupted one goes on.

    Returns:
        The contents of ``metrics.json``.

    Raises:
        UserError: for whatever is wrong with the request or the data.
    """
    began = time.perf_counter()
    set_up_logging()
    forget_peak()
    if in_sweep() and (found := finished_run(cfg)):
        log.info("%s is there already", found)
        return read_metrics(found)
    method = create_method(cfg.method)  # wrong settings are found before anything is read
    check_settings(cfg, method)
    dataset = read_images(cfg.dataset, Path(cfg.cache))
    if "train" not in dataset.splits:
        raise UserError(f"data set '{dataset.name}' has no pictures to train on: it is for evaluation")
    # too many shots are found now, not after hours of encoding
    few_shot(dataset.splits["train"].labels, cfg.shots, cfg.seed, dataset.classes)
    few_shot(dataset.splits["val"].labels, cfg.val_shots, cfg.seed, dataset.classes, "val_shots")
    path = choose_run_directory(cfg)
    timing: dict[str, float] = {}

    with timed(timing, "time/encode_s"):
        encoder = load_encoder(cfg.encoder)
        teacher = load_teacher(method, cfg, encoder)
    encode_text = text_encoder(teacher or encoder, Path(cfg.cache), cfg.trainer.progress)
    with timed(timing, "time/concepts_s"):
        candidates = candidate_bank(method, cfg, dataset, teacher or encoder, encode_text)
        pictures = concept_pictures(cfg, dataset) if learns_concepts(method, cfg) else None
    run = RunDirectory(path, cfg)
    log.info("%s %s", "going on in" if run.resumed else "writing to", run.path)
    with timed(timing, "time/encode_s"):
        data = encode_splits(dataset, encoder, cfg, ("train", "val", "test"), teacher)
        if method.reads_class_names:
            data.class_embeddings = encode_text([clean_class_name(name) for name in data.classes])
    if pictures is not None:
        with timed(timing, "time/concepts_s"):
            candidates = learn_bank(pictures, data, encoder, cfg)
    with timed(timing, "time/fit_s"):
        logger = wandb_logger(cfg, run)
        bank = candidates and apply_control(candidates, cfg.concepts.control, cfg.seed)
        model, bank = fit_method(method, data, bank, cfg, encoder.logit_scale, run.path, logger)
        facts = {f"method/{key}": value for key, value in method.facts.items()}  # before controls overwrite them

    with timed(timing, "time/nec_s"):
        heads = resolve_nec(model, bank, data, cfg)
    metrics = {**evaluate_split(model, bank, data, "val", heads), **evaluate_split(model, bank, data, "test", heads)}
    metrics |= facts
    for head in heads:
        metrics |= {f"nec/resolved{head.target}_{key}": getattr(head, key) for key in ("nec", "gap", "kkt")}
    integrity = None
    with timed(timing, "time/controls_s"):
        if cfg.controls and method.speaks_through == "bank":
            assert isinstance(model, ConceptBottleneck)
            assert candidates is not None
            assert bank is not None
            integrity = check_integrity(model, bank, data, candidates, cfg, encoder.logit_scale)
            metrics |= integrity_metrics(integrity)
    baselines = fit_baselines(method, data, cfg, encoder) if cfg.report else {}
    metrics |= {f"data/n_{name}": float(len(split)) for name, split in data.splits.items()}
    metrics["data/n_classes"] = float(len(data.classes))
    if bank is not None:
        metrics["model/n_concepts"] = float(len(bank))

    save_model(model, run.path / "model.safetensors")
    source_card(data.val.x, data.val.y, len(data.classes), cfg.seed).save(run.path / "source_card.safetensors")
    if heads:
        save_heads(heads, run.path / "nec.safetensors")
    if bank is not None:
        bank.save(run.path / "bank")
    timing["time/total_s"] = time.perf_counter() - began
    metrics |= {key: round(value, 3) for key, value in timing.items()}
    metrics |= memory()
    run.write_json("about.json", about(encoder, data, integrity, baselines))
    run.write_json("metrics.json", metrics)
    run.finish()
    if cfg.report:
        from cbm.report import write_report

        with not_the_end(f"the report is not written (python -m cbm report {run.path} tries again)"):
            write_report(run.path, model, bank, data, dataset, metrics, integrity, baselines, cfg)
    if logger is not None:
        from cbm.tracking import log_results

        with not_the_end("the results did not all go to W&B"):
            log_results(logger, run.path, metrics, model, bank, data, dataset.splits["test"].images)
    announce(run.path, metrics, heads, integrity, baselines, cfg)
    return metrics


def in_sweep() -> bool:
    """Whether this run is one of many that Hydra makes."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def check_settings(cfg: DictConfig, method: Method) -> None:
    """Find wrong choices before the long work begins."""
    if cfg.teacher is not None and not method.uses_teacher:
        able = [name for name, kind in METHODS.items() if kind.uses_teacher]
        raise UserError(
            f"method={cfg.method.name} has no use for a teacher: leave out teacher=, or choose "
            + " or ".join(f"method={name}" for name in able)
        )
    if cfg.teacher is not None and OmegaConf.is_missing(cfg.teacher, "model"):
        raise UserError("'teacher.model' is needed: say teacher.model=..., or teacher=NAME")
    if method.uses_teacher and learns_concepts(method, cfg):
        raise UserError(
            f"method={cfg.method.name} learns to see phrases, but concepts=cav are learned from pictures already: "
            "choose a bank of phrases, or another method (method=labo)"
        )
    if cfg.logger.wandb and importlib.util.find_spec("wandb") is None:
        raise UserError("logger=wandb needs the wandb package: uv pip install -e '.[wandb]' -c constraints.txt")
    for name, value in (("seed", cfg.seed), ("dataset.split_seed", cfg.dataset.split_seed)):
        if value < 0:
            raise UserError(f"{name}={value}: expected 0 or more")
    if any(count < 1 for count in cfg.nec):
        raise UserError(f"nec={list(cfg.nec)}: expected numbers of concepts per class, 1 or more")
    for name, value, allowed in (
        ("concepts.control", cfg.concepts.control, (None, *CONTROLS)),
        ("concepts.remove_class_names", cfg.concepts.remove_class_names, ("own", "any", "none")),
        ("dataset.on_error", cfg.dataset.on_error, ("skip", "fail")),
        ("encoder.store_dtype", cfg.encoder.store_dtype, tuple(DTYPES)),
        ("encoder.precision", cfg.encoder.precision, tuple(AUTOCAST)),
        ("teacher.store_dtype", cfg.teacher and cfg.teacher.store_dtype, (None, *DTYPES)),
        ("teacher.precision", cfg.teacher and cfg.teacher.precision, (None, *AUTOCAST)),
    ):
        if value not in allowed:
            raise UserError(
                f"{name}={value}: {did_you_mean(str(value), [str(choice) for choice in allowed if choice])}"
            )


def fit_method(
    method: Method, data: FeatureData, bank: ConceptBank | None, cfg: DictConfig, logit_scale: float,
    run_path: Path | None = None, logger: Any = None,
) -> tuple[nn.Module, ConceptBank | None]:  # fmt: skip
    """Build the method's model and train it; with a ``run_path``, checkpoints and ``log.csv`` are kept there."""
    seed_everything(cfg.seed, verbose=False)
    data.batch_size, data.concept_targets = None, {}  # of the method before
    model, bank = method.build(data, bank, logit_scale)
    if method.trains:
        module = ConceptBottleneckModule(model, method.optimizer, method.loss, method.validate)
        trainer = {key: cfg.trainer[key] for key in ("accelerator", "devices", "precision")}
        epochs = min(cfg.trainer.max_epochs, method.config.max_epochs)
        fit(
            module, data, patience=method.config.patience, max_epochs=epochs, trainer=trainer,
            checkpoint=run_path and run_path / "checkpoints" / "last.ckpt",
            checkpoint_seconds=cfg.trainer.checkpoint_seconds,
            progress=cfg.trainer.progress and run_path is not None, logger=logger,
        )  # fmt: skip
        if run_path is not None:
            write_history(run_path / "log.csv", module.history)
    return method.finish(model.eval().requires_grad_(False), data), bank


def resolve_nec(model: nn.Module, bank: ConceptBank | None, data: FeatureData, cfg: DictConfig) -> list[SparseHead]:
    """New sparse heads on the model's concepts, at every number of concepts per class the run asks for."""
    if not isinstance(model, ConceptBottleneck) or bank is None:
        return []
    if cfg.nec:
        log.info("solving sparse heads on %d concepts at %s per class", len(bank), ", ".join(map(str, cfg.nec)))
    return resolve_heads(model, data.train, len(data.classes), list(cfg.nec))


# ----------------------------------------------------------------------------------------------- controls, baselines


def check_integrity(
    model: ConceptBottleneck,
    bank: ConceptBank,
    data: FeatureData,
    candidates: ConceptBank,
    cfg: DictConfig,
    logit_scale: float,
) -> Integrity:
    """Fit the same method on random and on shuffled concepts and weigh the evidence (``cbm.metrics.integrity``)."""
    fitted: dict[str, tuple[Any, Any]] = {"real": (model, bank)}
    for control in CONTROLS:
        method, names = create_method(cfg.method).as_control(candidates, bank)
        fitted[control] = fit_method(method, data, apply_control(names, control, cfg.seed), cfg, logit_scale)
    test, classes = data.test, data.classes
    return weigh_integrity(
        {name: predict_logits(m, test.x).argmax(1) == test.y for name, (m, _) in fitted.items()},
        {name: truncated_logits(m, test.x).argmax(1) == test.y for name, (m, _) in fitted.items()},
        {name: concept_gaps(test.x, test.y, m.concepts, b.owners(classes))[1] for name, (m, b) in fitted.items()},
        deleted=float((deleted_logits(model, test.x).argmax(1) == test.y).float().mean()),
        renamed=renamed_accuracy(model, test.x, test.y),
        chance=chance_accuracy(test.y),
        outside=outside_share(model, test.x),
    )


def integrity_metrics(integrity: Integrity) -> dict[str, float]:
    """The integrity check as flat keys."""
    values = {"integrity/carries": float(integrity.carries), "integrity/deleted_accuracy": integrity.deleted}
    values["integrity/renamed_accuracy"] = integrity.renamed
    values["integrity/outside_share"] = integrity.outside
    for control in CONTROLS:
        values[f"integrity/{control}_accuracy"] = integrity.accuracy[control]
        values[f"integrity/{control}_accuracy_nec5"] = integrity.nec5[control]
        if not math.isnan(integrity.gap[control]):
            values[f"integrity/{control}_grounding_gap_std"] = integrity.gap[control]
    return values


def fit_baselines(method: Method, data: FeatureData, cfg: DictConfig, encoder: Encoder) -> dict[str, dict[str, float]]:
    """Test metrics of zero-shot classification (if the encoder reads text) and of a linear probe."""
    names = ["zero_shot", "linear_probe"] if encoder.has_text else ["linear_probe"]
    results = {}
    for name in names:
        baseline = create_method({"name": name})
        if type(baseline) is type(method):
            continue
        bank = None
        if baseline.speaks_through == "class_names":
            encode_text = text_encoder(encoder, Path(cfg.cache), cfg.trainer.progress)
            bank = class_name_bank(data.classes, cfg.dataset.template, encode_text, encoder.fingerprint)
        model, bank = fit_method(baseline, data, bank, cfg, encoder.logit_scale)
        results[name] = evaluate_split(model, bank, data, "test")
    return results


# ------------------------------------------------------------------------------------------------------------- evaluate


def evaluate(cfg: DictConfig) -> dict[str, float]:
    """Evaluate a finished run (``cbm.config.EvalConfig``) on one of its splits, or on another set of pictures.

    Returns:
        The metrics, also written to ``RUN/eval/DATASET-SPLIT.json``.

    Raises:
        UserError: no such run or split, other classes, or an encoder that is not the one the model was trained with.
    """
    set_up_logging()
    if OmegaConf.is_missing(cfg, "run"):
        raise UserError("which run? say run=runs/NAME")
    path, trained = open_run(Path(cfg.run))
    editor = None if cfg.editor is None else create_editor(cfg.editor)  # wrong settings are found first
    if editor is not None and cfg.edits is not None:
        raise UserError("edits= are yours and editor= makes its own: say one of them")
    if cfg.gate is not None and cfg.edits is None:
        raise UserError("gate= says which pictures edits= are for: say edits= too")
    if cfg.split not in ("train", "val", "test"):
        raise UserError(f"split={cfg.split}: {did_you_mean(cfg.split, ['train', 'val', 'test'])}")
    trained.cache, trained.shots, trained.val_shots = cfg.cache, "all", "all"
    trained.encoder.device = cfg.device
    if cfg.dataset is not None:
        trained.dataset = cfg.dataset
    remembered = read_about(path)
    dataset = reorder_classes(read_images(trained.dataset, Path(cfg.cache)), remembered["classes"])
    encoder = load_encoder(trained.encoder)
    if encoder.fingerprint != remembered["encoder"]["fingerprint"]:
        raise UserError(
            f"encoder '{encoder.id}' has other weights than when '{path}' was trained "
            f"({encoder.fingerprint} against {remembered['encoder']['fingerprint']})"
        )
    data = encode_splits(dataset, encoder, trained, ("val", cfg.split) if cfg.split != "val" else ("val",))
    model = load_model(path / "model.safetensors")
    bank = load_bank(path / "bank") if (path / "bank").is_dir() else None
    name, comparison = f"{dataset.name}-{cfg.split}", None
    if editor is not None:
        domain = cfg.domain or dataset.name
        correction = correct(path, trained, model, bank, data, cfg.split, editor, domain, encoder)
        model, comparison, data.splits[cfg.split] = correction.proposal.model, correction.comparison, correction.tested
        name += f"-{cfg.editor.name}"
    elif cfg.edits is not None:
        split, gate = data.splits[cfg.split], None if cfg.gate is None else load_gate(resolve_path(cfg.gate))
        domain = cfg.domain or dataset.name
        model, comparison = edit_model(model, bank, split, dataset.classes, resolve_path(cfg.edits), domain, gate)
        name += "-edited"
    heads = load_heads(path / "nec.safetensors") if comparison is None else []
    metrics = evaluate_split(model, bank, data, cfg.split, heads)
    if comparison is not None:
        metrics |= comparison.metrics()
        metrics[f"{cfg.split}/accuracy"] = metrics["edits/accuracy_after"]  # with edits of single pictures, and gates
    if editor is not None:
        metrics |= correction.metrics()
        write_correction(path / "eval" / name, correction, str(path))
    metrics[f"data/n_{cfg.split}"] = float(len(data.splits[cfg.split]))
    content = json.dumps(metrics, indent=1).encode()
    write_atomically(path / "eval" / f"{name}.json", content)
    if cfg.output is not None:
        write_atomically(Path(cfg.output), content)
    how = f" with {cfg.edits}" if cfg.edits else f" corrected by {cfg.editor.name}" if cfg.editor else ""
    print_metrics(f"{path} on {dataset.name}/{cfg.split}{how}", metrics)
    if comparison is not None:
        log.info("%s", comparison)
        for of, count, before, after in changed_most(comparison):
            log.info("%s: %.3f -> %.3f of %d pictures right", of, before, after, count)
    if editor is not None:
        log.info("%s", correction.summary())
        log.info("edits and a page to read: %s", path / "eval" / name)
    return metrics


def edit_model(
    model: nn.Module, bank: ConceptBank | None, split: FeatureSplit, classes: list[str], file: Path, domain: str,
    gate: Gate | None,
) -> tuple[nn.Module, Comparison]:  # fmt: skip
    """The model after the edits of all pictures of the domain, and the decisions before and after all edits.

    Raises:
        UserError: no such file, a model without concepts to edit, an unknown concept, class or picture.
    """
    edits = load_edits(file)
    if not isinstance(model, ConceptBottleneck | EnergyBottleneck) or bank is None:
        raise UserError("this model has no concepts to edit")
    edits.check_pictures(split.names)
    before = predict_logits(model, split.x)
    inside = None if gate is None else gate(split.x)
    after = edited_logits(model, edits, bank, classes, split.x, split.names, before, domain, inside)
    log.info("%d edits:%s", len(edits), "".join(f"\n  {edit}" for edit in edits.edits))
    if elsewhere := sorted(edits.domains - {domain}):
        log.info("pictures of '%s': edits of '%s' do not act (domain= says otherwise)", domain, elsewhere[0])
    return edited_model(model, edits, bank.texts, classes, domain), Comparison(before, after, split.y, classes)


def rewrite_report(path: Path, cache: Path) -> Path:
    """Write the report of a finished run again, from what the run directory and the feature store hold."""
    from cbm.report import write_report

    set_up_logging()
    path, cfg = open_run(path)
    cfg.cache = str(cache)
    remembered = read_about(path)
    dataset = reorder_classes(read_images(cfg.dataset, cache), remembered["classes"])
    data = encode_splits(dataset, load_encoder(cfg.encoder), cfg, ("train", "val", "test"))
    bank = load_bank(path / "bank") if (path / "bank").is_dir() else None
    integrity = remembered["integrity"] and integrity_from_json(remembered["integrity"])
    metrics = read_metrics(path)
    model = load_model(path / "model.safetensors")
    write_report(path, model, bank, data, dataset, metrics, integrity, remembered["baselines"], cfg)
    return path / "report.html"


# ------------------------------------------------------------------------------------------------ logging, reporting


def set_up_logging() -> None:
    """Our log to the terminal, one line each; the libraries keep quiet."""
    warnings.simplefilter("ignore")
    if not log.handlers:
        handler = RichHandler(console=Console(stderr=True, width=None if sys.stderr.isatty() else 160), show_path=False,
                              show_time=False, show_level=False, markup=False, highlighter=None)  # fmt: skip
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
    log.setLevel("INFO" if getattr(rank_zero_only, "rank", 0) == 0 else "ERROR")  # of several processes one speaks
    log.propagate = False
    quiet_libraries()


def quiet_libraries() -> None:
    """The libraries keep their advice to themselves."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel("ERROR")
    for name in ("open_clip", "httpx", "huggingface_hub", "root", "timm"):
        logging.getLogger(name).setLevel("CRITICAL")


@contextmanager
def not_the_end(what: str):
    """An exception in the block is a warning that says what is missing: the run is finished all the same."""
    try:
        yield
    except Exception as error:
        log.warning("%s: %s", what, " ".join(str(error).split())[:200] or type(error).__name__)


@contextmanager
def timed(timing: dict[str, float], key: str):
    """Add the seconds of the block to ``timing[key]``."""
    began = time.perf_counter()
    yield
    timing[key] = timing.get(key, 0.0) + time.perf_counter() - began


def forget_peak() -> None:
    """Let the largest memory of this process be measured from here on (Linux; elsewhere from its beginning)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def memory() -> dict[str, float]:
    """The largest memory of this process in MB, mapped files included."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return {}
    peak = next((line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM")), None)
    return {} if peak is None else {"memory/peak_mb": round(int(peak) / 1024, 1)}


def about(
    encoder: Encoder, data: FeatureData, integrity: Integrity | None, baselines: dict[str, Any]
) -> dict[str, Any]:
    """What a later reader of the run needs to know."""
    return {
        "classes": data.classes,
        "encoder": {"id": encoder.id, "fingerprint": encoder.fingerprint, "dim": encoder.dim,
                    "logit_scale": encoder.logit_scale, "preprocess": " ".join(repr(encoder.preprocess).split())},
        "verdict": integrity and integrity.verdict,
        "integrity": integrity and asdict(integrity),
        "baselines": baselines,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }  # fmt: skip


def wandb_logger(cfg: DictConfig, run: RunDirectory) -> Any:
    """A W&B logger if asked for; without a login it works offline by itself."""
    if not cfg.logger.wandb:
        return None
    from cbm.tracking import create_wandb_logger

    settings: Any = OmegaConf.to_container(cfg, resolve=True)
    return create_wandb_logger(
        run.path, settings, project=cfg.logger.project, entity=cfg.logger.entity, tags=list(cfg.logger.tags)
    )


def announce(
    path: Path, metrics: dict[str, float], heads: list[SparseHead], integrity: Integrity | None,
    baselines: dict[str, dict[str, float]], cfg: DictConfig,
) -> None:  # fmt: skip
    """The results on the terminal."""
    print_metrics(f"{cfg.method.name} on {cfg.dataset.name}", metrics)
    for head in {head.nec: head for head in heads}.values():  # a path that ends early is one head for several targets
        log.info(
            "  re-solved with %.4g concepts per class: test accuracy %.4f (duality gap %.0e, KKT residual %.0e)",
            head.nec, metrics[f"test/accuracy_nec{head.target}_resolved"], head.gap, head.kkt,
        )  # fmt: skip
    for name, values in baselines.items():
        log.info("  %-28s %.4f", f"{name} accuracy", values["test/accuracy"])
    if integrity is not None:
        log.info(integrity.verdict)
    written = "report.html" if (path / "report.html").is_file() else "metrics.json"
    log.info("done in %.1f s: %s", metrics["time/total_s"], path / written)


def print_metrics(title: str, metrics: dict[str, float]) -> None:
    """A few lines for people; everything is in ``metrics.json``."""
    log.info(title)
    for key, value in metrics.items():
        if "_nec" in key and key.endswith("_resolved") and "avg" not in key:
            continue  # said with their certificates
        if key.startswith(("test/", "train/", "model/")) or (key.startswith("val/") and "test/accuracy" not in metrics):
            log.info("  %-28s %.4f", key, value)
