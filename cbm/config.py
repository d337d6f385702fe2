"""The configuration: dataclass schemas for Hydra; every card and bank in its folder becomes a choice.

Imports nothing heavy, so that ``python train.py --help`` answers quickly. A method's own settings live in the method's
file (``cbm/methods/NAME.py``, class ``Config``) and are checked against it when the run starts.
"""

import importlib.util
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cbm.errors import UserError, did_you_mean
from cbm.files import SHIPPED, named_files
from cbm.files.shipped import install_command, relative_name

T = TypeVar("T")

FEATURES = "features"
"""The reader of features that were made elsewhere."""
BUNDLED = "local-dir:cbm/encoders/tiny_clip"
"""What ``encoder=auto`` stands for where there are images to encode."""
CONFIGS = SHIPPED / "configs"
CARDS = SHIPPED / "datasets"
BANKS = SHIPPED / "concepts"


@dataclass
class DatasetConfig:
    """A data set card (``datasets/NAME.yaml``)."""

    name: str = MISSING
    reader: str = MISSING
    """folder | csv | webdataset | cub | imagenet | ... (docs/datasets.md)"""
    root: str | None = None
    """Folder (or CSV file) with the images."""
    bank: str | None = None
    """The concept bank used when ``concepts`` is ``auto``."""
    template: str = "a photo of a {}."
    """Prompt for a class name in the zero-shot baseline."""
    negative_template: str | None = None
    """Prompt that says a label is not there, where an image has several; null: the data set's, or "no" in the prompt"""
    superclass: str | None = None
    """What all classes are, e.g. bird (used in the questions of ``python -m cbm concepts llm``)"""
    val_fraction: float = 0.1
    """Share of the training images that becomes the validation split, by class, if the data set has none"""
    test_fraction: float = 0.2
    """Share of the training images that becomes the test split, by class, if the data set has none"""
    split_seed: int = 0
    """Random seed for these splits"""
    on_error: str = "skip"
    """What to do about unreadable images: skip (and report) | fail"""
    max_skipped: float = 0.01
    """Largest share of unreadable images of a split that is skipped (one image is, but at 0); more end the run"""
    args: dict[str, Any] = field(default_factory=dict)
    """Further settings of the reader."""


@dataclass
class AboutConfig:
    """Facts about a data set, shown by ``python -m cbm datasets`` (``about:`` of the card)."""

    title: str = ""
    homepage: str = ""
    licence: str = ""
    """Licence as published; 'see homepage' if it is not a common one"""
    citation: str = ""
    get: str = ""
    """How to get the data set"""
    counts: dict[str, int] = field(default_factory=dict)
    """Published numbers of classes and concepts, and of images in train, val and test, as the reader divides them"""
    md5: dict[str, str] = field(default_factory=dict)
    """Published checksums of files, by path relative to the root"""


@dataclass
class EncoderConfig:
    """A frozen encoder, or a teacher (``configs/encoder/NAME.yaml``, or any model on the command line)."""

    model: str = MISSING
    """Model: auto (the bundled one, or none where features are given), an open_clip name, hf-hub:ORG/NAME,
    local-dir:PATH, timm:NAME or torchvision:NAME"""
    pretrained: str | None = None
    """Pretrained tag of an open_clip model; 'default' or 'random' for timm: and torchvision:"""
    precision: str = "bf16"
    """Autocast precision on a GPU: fp32 | bf16 | fp16 (CPUs always compute in fp32)"""
    store_dtype: str = "float32"
    """Number format of the feature store: float32 | float16"""
    batch_size: int = 256
    """Images per forward pass"""
    num_workers: int = 2
    """Processes that decode images"""
    device: str = "auto"
    """Device of the encoder: auto | cpu | cuda"""


@dataclass
class CavConfig:
    """``concepts=cav``: concepts learned from images that show them (``cbm/concepts/cav.py``)."""

    dataset: str | None = None
    """Card whose training images have concept columns; by default this run's own training images"""
    root: str | None = None
    """Folder of the images of that card, if it does not say"""
    folder: str | None = None
    """Instead of a card, a folder of images: FOLDER/CONCEPT/{positives,negatives}/*.jpg, or FOLDER/CONCEPT/*.jpg"""
    per_concept: int = 100
    """Training images with the concept, and without it; as many again are held out to score it"""
    svm_c: float = 0.1
    """Cost of an error of the support vector machine, against a wide margin"""
    fit: str = "svm"
    """svm | fast (the direction from one mean to the other, FastCAV) | auto (fast for concepts with fewer than 50
    training images)"""
    fidelity: str | None = None
    """repaired (features centred and scaled, both sides weigh the same) | released (features as they are, as in the
    code of post-hoc bottlenecks); null: as method.fidelity says for posthoc, else repaired"""


@dataclass
class ConceptsConfig:
    """Source of the concepts, and how they are filtered before selection."""

    source: str = "auto"
    """Source of the concepts: a file; 'auto' (the data set's own bank, else a shipped bank with the same classes, else
    concepts/general.txt); 'cav' (learned from images); or 'discovered:RUN' (the named units of a finished run)"""
    key: str | None = None
    """Name of the vectors in a file that holds several (concepts=words.npz concepts.key=lvis)"""
    embeddings: str | None = None
    """File with the phrases' embeddings (.npz with names, or rows in the order of the phrases), instead of a text
    tower"""
    class_embeddings: str | None = None
    """File with embeddings of the class names (with names, or in the order of the classes), instead of a text tower"""
    cav: CavConfig = field(default_factory=CavConfig)
    """Settings of concepts learned from images"""
    control: str | None = None
    """Control experiment: random (meaningless directions) | shuffled (every name gets another concept's direction)"""
    remove_class_names: str = "own"
    """Drop concepts that contain a class name: own (of a class that owns the concept) | any | none"""
    hygiene: bool = True
    """Drop phrases that are not visual or not phrases (see cbm/concepts/hygiene.py)"""
    max_words: int = 20
    """Longest phrase that is kept, in words"""
    missing_classes: str = "refuse"
    """What becomes of classes that a bank has no phrases for: refuse (the run ends) | general (they get the phrases of
    concepts/general.txt)"""


@dataclass
class TrainerConfig:
    """Settings of Lightning's Trainer."""

    accelerator: str = "auto"
    devices: Any = 1
    precision: str = "32-true"
    max_epochs: int = 1000
    threads: int | None = None
    """Threads of torch on the processor; null: as many as it takes by itself. Another number adds numbers up in another
    order, which can change results"""
    progress: bool = True
    """Whether progress bars are shown"""
    checkpoint_seconds: float = 30.0
    """Seconds between two writes of ``checkpoints/last.ckpt``, from which an interrupted run goes on"""


@dataclass
class LoggerConfig:
    """Settings of the loggers; ``log.csv`` is always written."""

    wandb: bool = False
    """Whether to log to Weights & Biases too"""
    project: str = "cbm"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)


@dataclass
class EvidenceConfig:
    """What is asked of the concepts after training (``cbm.metrics.integrity``)."""

    reader: str | None = None
    """An independent text encoder that reads the names (a choice of encoder=, or a model such as local-dir:PATH); null:
    the classes that phrases were written for say what they mean"""
    prompt: str = "{}"
    """Sentence in which the reader sees a phrase or class name ("a {}")"""
    draws: int = 199
    """Permutations of the names for every p-value"""
    random_draws: int = 20
    """Sets of random directions on which a head with five concepts per class is solved, for comparison; 0 for none"""


@dataclass
class TrainConfig:
    """Everything ``train.py`` accepts."""

    dataset: DatasetConfig = MISSING
    encoder: EncoderConfig | None = MISSING
    """The frozen encoder; null where the data set's features are given (dataset=features)"""
    teacher: EncoderConfig | None = None
    """A text-image model whose concept scores the method learns to reproduce; by default the encoder itself"""
    concepts: ConceptsConfig = field(default_factory=ConceptsConfig)
    method: Any = MISSING
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    seed: int = 0
    """Random seed for few-shot draws, training and controls"""
    shots: Any = "all"
    """Training images per class: a number, or 'all'"""
    val_shots: Any = "all"
    """Validation images per class: a number, or 'all' (the papers' protocol, also at few shots)"""
    run_dir: str | None = None
    """Folder of the run; by default runs/METHOD-DATASET-HASH"""
    overwrite: bool = False
    """Whether to move a finished run of the same name aside (to NAME.old-N) instead of stopping"""
    cache: str = "cache"
    """Folder of the feature store and of the splits that were drawn"""
    controls: bool = True
    """Whether to test the concepts: what their names say, and what the same method does on meaningless ones"""
    evidence: EvidenceConfig = field(default_factory=EvidenceConfig)
    nec: list[int] = field(default_factory=lambda: [5, 10, 15, 20, 25, 30])
    """Numbers of concepts per class for which a new head is solved on the method's concepts (the NEC protocol); [] for
    none"""
    report: Any = "short"
    """What people are shown: short (report.html with its details folded, six numbers on the terminal) | full (the page
    unfolded, all numbers on the terminal) | none (no page); true is short, false is none"""


@dataclass
class EvalConfig:
    """Everything ``eval.py`` accepts."""

    run: str = MISSING
    """Run directory written by train.py"""
    split: str = "test"
    """Split to evaluate: train | val | test"""
    dataset: DatasetConfig | None = None
    """Another data set with the same classes to evaluate on (dataset=birds_shift)"""
    edits: str | None = None
    """File of edits, as cbm.Editor saves them (edits=edits.yaml); metrics are shown before and after"""
    editor: Any = None
    """Editor that corrects the model for these images: configs/editor/NAME.yaml (editor=test_time)"""
    domain: str | None = None
    """Name of the domain that the images come from, for edits bound to one; by default the data set's name"""
    gate: str | None = None
    """File of a gate (gate.safetensors): only images that pass it are edited"""
    cache: str = "cache"
    """Folder of the feature store"""
    device: str = "auto"
    """Device of the encoder: auto | cpu | cuda"""
    output: str | None = None
    """Further JSON file to which the metrics are written"""


REPORTS = ("short", "full", "none")


def report_form(value: Any) -> str:
    """The setting ``report``; runs of before said true or false.

    Raises:
        UserError: it is none of the choices.
    """
    form = {True: "short", False: "none", None: "none"}.get(value, value)
    if form not in REPORTS:
        raise UserError(f"report={value}: {did_you_mean(str(value), REPORTS)}")
    return form


CHOICES: dict[str, tuple[str, ...]] = {
    "concepts.control": ("random", "shuffled"),
    "concepts.remove_class_names": ("own", "any", "none"),
    "dataset.on_error": ("skip", "fail"),
    "encoder.store_dtype": ("float32", "float16"),
    "encoder.precision": ("fp32", "bf16", "fp16"),
    "teacher.store_dtype": ("float32", "float16"),
    "teacher.precision": ("fp32", "bf16", "fp16"),
}
"""Allowed values of some settings."""


def choose_encoder(cfg: DictConfig) -> None:
    """Put the encoder in the place of ``encoder=auto``: the bundled one, or none where features are given.

    Args:
        cfg: a ``TrainConfig``, which is changed.

    Raises:
        UserError: there are images, and ``encoder=null``.
    """
    given = cfg.dataset.reader == FEATURES
    if OmegaConf.is_missing(cfg, "encoder") or (given and cfg.encoder and cfg.encoder.model == "auto"):
        cfg.encoder = None
    if cfg.encoder is None and not given:
        raise UserError("encoder=null: images need an encoder to read them, say encoder=auto or encoder=NAME")
    if cfg.encoder is not None and cfg.encoder.model == "auto":
        cfg.encoder.model = BUNDLED


def check_settings(cfg: DictConfig) -> None:
    """Check a ``TrainConfig`` before the long work begins.

    Raises:
        UserError: a value is out of range or not among the choices (the message names the nearest), or W&B is not
            installed.
    """
    if cfg.logger.wandb and importlib.util.find_spec("wandb") is None:
        raise UserError(f"logger=wandb needs the wandb package: {install_command('wandb')}")
    for name, value in (("seed", cfg.seed), ("dataset.split_seed", cfg.dataset.split_seed)):
        if value < 0:
            raise UserError(f"{name}={value}: expected 0 or more")
    if not 0 <= cfg.dataset.max_skipped <= 1:
        raise UserError(f"dataset.max_skipped={cfg.dataset.max_skipped}: expected a share from 0 to 1")
    if cfg.trainer.threads is not None and cfg.trainer.threads < 1:
        raise UserError(f"trainer.threads={cfg.trainer.threads}: expected 1 or more, or null")
    if any(count < 1 for count in cfg.nec):
        raise UserError(f"nec={list(cfg.nec)}: expected numbers of concepts per class, 1 or more")
    for name, least in (("draws", 20), ("random_draws", 0)):
        if cfg.evidence[name] < least:
            raise UserError(f"evidence.{name}={cfg.evidence[name]}: expected {least} or more")
    if "{}" not in str(cfg.evidence.prompt):
        raise UserError(f"evidence.prompt='{cfg.evidence.prompt}' has no place {{}} for the phrase")
    report_form(cfg.report)
    for name, allowed in CHOICES.items():
        value = OmegaConf.select(cfg, name)
        if value is not None and value not in allowed:
            raise UserError(f"{name}={value}: {did_you_mean(str(value), allowed)}")


def card_names() -> list[str]:
    """Names of the data set cards: ``datasets/*.yaml`` of the working folder, and those that come with cbm."""
    return [name for name, file in card_files().items() if file.is_relative_to(CARDS) or _looks_like_card(file)]


def card_files() -> dict[str, Path]:
    """Cards by name. A file of the working folder hides a shipped card of its name only if it is a card itself."""
    found = named_files(CARDS, "*.yaml")
    shipped = {file.stem: file for file in CARDS.glob("*.yaml") if file.is_file()}
    return found | {name: file for name, file in shipped.items() if not _looks_like_card(found[name])}


def _looks_like_card(file: Path) -> bool:
    """Whether a YAML file of a stranger's ``datasets/`` folder is a card, which names a reader."""
    try:
        return any(line.startswith("reader:") for line in file.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError):
        return False


def bank_files() -> dict[str, Path]:
    """The concept banks by name: ``concepts/`` of the working folder, and those that come with cbm."""
    return named_files(BANKS, "*.json", "*.txt")


def config_files(group: str) -> dict[str, Path]:
    """The choices of a group and their files. ``configs/`` of the working folder adds to those that come with cbm, and
    replaces none: it may belong to another program that has a ``trainer: default`` too (cards do replace cards)."""
    if group == "dataset":
        return card_files()
    found = named_files(CONFIGS / group, "*.yaml")
    return {name: shipped if (shipped := CONFIGS / group / file.name).is_file() else file
            for name, file in found.items()}  # fmt: skip


def replaced_in_vain() -> list[Path]:
    """Files in ``configs/`` of the working folder that are called as a choice that comes with cbm, and not used."""
    own = Path(CONFIGS.name)
    if not own.is_dir() or own.samefile(CONFIGS):
        return []
    return sorted(file for file in own.glob("*/*.yaml") if (CONFIGS / file.relative_to(own)).is_file())


def read_choice(group: str, choice: str) -> dict[str, Any]:
    """The settings behind ``group=choice``, as its file has them.

    Raises:
        UserError: the file cannot be read.
    """
    file = config_files(group)[choice]
    return _read_settings(file, f"configs/{group}/{file.name}")


def load_card(name: str) -> DictConfig:
    """A data set card by name, with defaults, without its ``about:`` (see ``about_card``).

    Raises:
        UserError: there is no such card, or it cannot be read.
    """
    card = _read_card(name)
    card.pop("about", None)
    known = [entry.name for entry in fields(DatasetConfig)]
    for key in card:
        if key not in known:
            near = did_you_mean(str(key), [*known, "about"])
            raise UserError(f"card datasets/{name}.yaml: unknown key '{key!s}', {near}")
    try:
        return OmegaConf.merge(OmegaConf.structured(DatasetConfig), card)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise UserError(f"card datasets/{name}.yaml: {str(error).splitlines()[0]}") from error


def change_card(card: DictConfig, settings: list[str]) -> DictConfig:
    """A card with some settings changed.

    Args:
        card: the card.
        settings: changes, such as ``args.level=image``.

    Raises:
        UserError: a setting is unknown, or not of the form ``KEY=VALUE``.
    """
    for setting in settings:
        key = setting.partition("=")[0]
        if "=" not in setting:
            raise UserError(f"'{setting}': expected KEY=VALUE, such as root=/path/to/images")
        if key.partition(".")[0] not in card:
            raise UserError(f"unknown setting '{key}' of a card: {did_you_mean(key, [str(known) for known in card])}")
    try:
        return OmegaConf.merge(card, OmegaConf.from_dotlist(settings))  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise UserError(f"{' '.join(settings)}: {str(error).splitlines()[0]}") from error


def about_card(name: str) -> AboutConfig:
    """The ``about:`` of a data set card.

    Raises:
        UserError: there is no such card, or it cannot be read.
    """
    return typed_settings("about", name, AboutConfig, _read_card(name).get("about") or {})


def _read_card(name: str) -> dict[str, Any]:
    if name not in (files := card_files()):
        raise UserError(f"unknown dataset '{name}': {did_you_mean(name, card_names())}")
    return _read_settings(files[name], f"card datasets/{name}.yaml")


def _read_settings(file: Path, called: str) -> dict[str, Any]:
    try:
        settings: Any = OmegaConf.to_container(OmegaConf.load(file))
    except Exception as error:  # OmegaConf lets whatever its parser raises through
        raise UserError(f"{called} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise UserError(f"{called}: expected KEY: VALUE lines")
    return settings


class Registry(dict[str, T]):
    """Objects by name: ``METHODS["labo"]``.

    Args:
        what: word for one entry, used in messages and as the group on the command line (``method``).
    """

    def __init__(self, what: str):
        super().__init__()
        self.what = what

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that adds a function or class to the registry as ``name``."""

        def add(entry: T) -> T:
            self[name] = entry
            return entry

        return add

    def find(self, name: str) -> T:
        """The entry of this name.

        Raises:
            UserError: there is none; the message names the nearest.
        """
        if name not in self:
            raise UserError(f"unknown {self.what} '{name}': {did_you_mean(name, self)}")
        return self[name]

    def create(self, settings: DictConfig | dict[str, Any]) -> Any:
        """An instance of a class of this registry.

        Args:
            settings: ``name``, and the fields of the class's ``Config`` (or of the class itself, if it is a dataclass).

        Raises:
            UserError: a name or setting is unknown (the message names the nearest), or a value has the wrong type.
        """
        rest: dict[str, Any] = dict(OmegaConf.to_container(OmegaConf.create(settings)))  # type: ignore[arg-type]
        name = str(rest.pop("name", ""))
        kind: Any = self.find(name)
        if not hasattr(kind, "Config"):
            return typed_settings(self.what, name, kind, rest)
        return kind(typed_settings(self.what, name, kind.Config, rest))


def typed_settings(group: str, name: str, kind: type, settings: Any) -> Any:
    """Make an instance of a dataclass from settings.

    Args:
        group: group of the settings, for messages.
        name: name within the group, for messages.
        kind: the dataclass.
        settings: values of its fields.

    Raises:
        UserError: the settings are not a mapping, a setting is unknown (the message names the nearest), or a value has
            the wrong type.
    """
    known = [entry.name for entry in fields(kind)]
    if not isinstance(settings, dict):
        raise UserError(f"'{group}' of '{name}' is {repr(settings)[:60]}: expected settings, such as {known[0]}: ...")
    for key in settings:
        if key not in known:
            raise UserError(f"unknown setting '{group}.{key}' of '{name}': {did_you_mean(str(key), known)}")
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), settings))
    except OmegaConfBaseException as error:
        raise UserError(f"{group}.{error.full_key or error.key}: {error.msg or str(error)}".split("\n")[0]) from error


def choices(group: str) -> list[str]:
    """The names that ``group=NAME`` accepts on the command line."""
    if group == "dataset":
        return card_names()
    if group == "concepts":
        return ["auto", "cav", *bank_files()]
    if group == "teacher":
        return [name for name in choices("encoder") if name != "auto"]
    return list(config_files(group))


def groups() -> list[str]:
    """The config groups: ``method``, ``encoder``, ``dataset``, ``concepts``, ..."""
    return sorted({folder.name for folder in CONFIGS.iterdir() if folder.is_dir()} | {"dataset", "concepts", "teacher"})


def register() -> None:
    """Register the schemas, data set cards, concept banks and teachers with Hydra.

    Raises:
        UserError: a card cannot be read.
    """
    store = ConfigStore.instance()
    store.store("train_schema", TrainConfig)
    store.store("eval_schema", EvalConfig)
    for name in card_names():
        settings = {key: value for key, value in _read_card(name).items() if key != "about"}
        store.store(name, settings, group="dataset")
    for name in ("auto", "cav"):
        store.store(name, {"source": name}, group="concepts")
    for name, bank in bank_files().items():
        store.store(name, {"source": relative_name(bank) if bank.is_absolute() else bank.as_posix()}, group="concepts")
    for name in choices("teacher"):
        with suppress(UserError):  # said if it is chosen
            store.store(name, read_choice("encoder", name), group="teacher")
    store.store("any", {}, group="teacher")
