"""``python -m cbm``: everything that is not training or evaluating."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cbm import config as schema
from cbm.errors import UserError, did_you_mean
from cbm.files import resolve_path

if TYPE_CHECKING:
    from cbm.concepts.bank import ConceptBank

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
datasets = typer.Typer(help="List the data set cards, or check a download.", invoke_without_command=True)
app.add_typer(datasets, name="datasets")
concepts = typer.Typer(help="Look after concept banks.", no_args_is_help=True)
app.add_typer(concepts, name="concepts")
out = Console(width=None if sys.stdout.isatty() else 120)

Bank = Annotated[Path, typer.Argument(help="A bank: bank.json, class -> phrases JSON, or one phrase per line.")]
Encoder = Annotated[str, typer.Option(help="Encoder: a config name, or any model spec (local-dir:PATH, ...).")]
Cache = Annotated[Path, typer.Option(help="The feature store.")]


@datasets.callback()
def list_cards(context: typer.Context) -> None:
    """List the data set cards (docs/datasets.md says more), or check a download."""
    if context.invoked_subcommand is not None:
        return
    table = Table("name", "data set", "classes", "train / val / test", "concepts", "licence")
    for name in schema.card_names():
        about = schema.about_card(name)
        counts = {key: f"{count:,}" for key, count in about.counts.items()}
        pictures = " / ".join(counts.get(split, "-") for split in ("train", "val", "test")) if "train" in counts else ""
        table.add_row(name, about.title, counts.get("classes"), pictures, counts.get("concepts"), about.licence)
    out.print(table)


@datasets.command()
def show(name: Annotated[str, typer.Argument(help="A data set card.")]) -> None:
    """Say what a data set is, where to get it and how to cite it, and how its card is set."""
    from dataclasses import asdict

    from omegaconf import OmegaConf

    card: Any = OmegaConf.to_container(schema.load_card(name))
    table = Table(show_header=False, box=None)
    for key, value in {**asdict(schema.about_card(name)), **card}.items():
        if isinstance(value, dict):
            value = ", ".join(f"{entry} {said}" for entry, said in value.items())
        if value not in (None, ""):
            table.add_row(key, escape(str(value)))
    out.print(table, highlight=False)


@datasets.command()
def check(
    name: Annotated[str, typer.Argument(help="A data set card.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Settings of the card: root=PATH, args.level=image, ...")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Where the images are, if the card does not say.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Open every picture, not some of each split.")] = False,
    cache: Cache = Path("cache"),
) -> None:
    """Check a download: the published numbers of classes and pictures, missing and broken files, checksums. Exit
    status 1 if something is wrong."""
    import numpy as np

    from cbm.data import read_dataset
    from cbm.data.verify import Findings, verify_checksums, verify_counts, verify_images
    from cbm.run import set_up_logging

    set_up_logging()
    about = schema.about_card(name)
    card = schema.change_card(schema.load_card(name), settings or [])
    card.root = card.root if root is None else str(root)
    published = {} if any(setting.startswith("args.") for setting in settings or []) else about.counts
    place, found = card.root and resolve_path(card.root), Findings()
    if place is not None:
        verify_checksums(place, about.md5, found)
    for problem in found.problems:  # at once: what was not whole may not be readable
        out.print(escape(f"wrong: {problem}"), highlight=False)
    dataset = read_dataset(card.reader, card.name, place, dict(card.args or {}), cache)
    shown = len(found.problems)
    verify_counts(dataset, published, found)
    verify_images(dataset, found, every=every, progress=out.is_terminal)
    table = Table("split", "pictures", "published", "classes", "per class", "concepts")
    for split, part in dataset.splits.items():
        counts = np.bincount(part.labels, minlength=len(dataset.classes))
        expected = f"{published[split]:,}" if split in published else "-"
        table.add_row(
            split, f"{len(part):,}", expected, str((counts > 0).sum()), f"{counts.min():,} to {counts.max():,}",
            str(len(dataset.concept_names)),
        )  # fmt: skip
    out.print(table)
    for note in found.notes:
        out.print(escape(f"note: {note}"), highlight=False)
    for problem in found.problems[shown:]:
        out.print(escape(f"wrong: {problem}"), highlight=False)
    out.print(f"{name}: {len(found.problems)} problem(s)" if found.problems else f"{name}: all right", highlight=False)
    raise typer.Exit(1 if found.problems else 0)


@app.command()
def encode(
    dataset: Annotated[str, typer.Argument(help="A data set card (see: python -m cbm datasets).")],
    root: Annotated[Path | None, typer.Option(help="Where the images are, if the card does not say.")] = None,
    encoder: Encoder = "tiny_clip",
    pretrained: Annotated[str | None, typer.Option(help="Pretrained tag of an open_clip model.")] = None,
    cache: Cache = Path("cache"),
    workers: Annotated[int, typer.Option(help="Processes that decode images.")] = 2,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = 256,
    dtype: Annotated[str, typer.Option(help="What the store keeps: float32 | float16.")] = "float32",
    devices: Annotated[int, typer.Option(help="Processes on this machine, one per device.")] = 1,
    nodes: Annotated[int, typer.Option(help="Machines (where SLURM or torchrun starts the processes).")] = 1,
) -> None:
    """Encode all splits of a data set into the feature store (interrupted: run it again, it goes on)."""
    from lightning.pytorch.utilities import rank_zero_only

    from cbm.inputs import encode_splits, load_encoder, read_images
    from cbm.run import set_up_logging

    set_up_logging()
    cfg = _encoding(encoder, pretrained, cache, workers, batch_size)
    cfg.dataset = schema.load_card(dataset)
    if root is not None:
        cfg.dataset.root = str(root)
    if dtype not in (known := ("float32", "float16")):
        raise UserError(f"--dtype {dtype}: {did_you_mean(dtype, known)}")
    cfg.encoder.store_dtype = dtype
    images = read_images(cfg.dataset, cache)
    encoder_ = load_encoder(cfg.encoder)
    data = encode_splits(images, encoder_, cfg, tuple(images.splits), devices=devices, nodes=nodes)
    for name, split in data.splits.items() if getattr(rank_zero_only, "rank", 0) == 0 else ():
        out.print(f"{name}: {len(split)} images, {data.dim} dimensions")


@app.command()
def plan(
    sizes: Annotated[
        list[str],
        typer.Argument(help="N=pictures K=concepts, D=512 C=1000 candidates= shots= passes= encoder= dtype= hardware="),
    ],
) -> None:
    """Say what a LaBo run will take before it begins: FLOP, least time, memory, disk, the way it is computed."""
    from cbm.planning import HARDWARE, Stage, in_bytes, in_time, measure_here, read_job
    from cbm.planning import plan as stages

    job, name = read_job(sizes)
    machine = measure_here() if name == "here" else HARDWARE[name]
    table = Table("stage", "FLOP", "time, at least", "memory", "disk", "how")
    found = stages(job, machine)
    flop, seconds, disk = (sum(getattr(each, name) for each in found) for name in ("flop", "seconds", "disk"))
    peak = max(each.memory for each in found)
    for each in [*found, Stage("in all", flop, seconds, peak, disk, "")]:
        table.add_row(
            each.name, f"{each.flop:.1e}", in_time(each.seconds), in_bytes(each.memory), in_bytes(each.disk), each.how
        )
    out.print(table, highlight=False)
    out.print(
        f"{machine.name} ({machine.source}): {machine.flops / 1e9:,.0f} GFLOP/s in float32, "
        f"{machine.bandwidth / 1e9:,.0f} GB/s, {in_bytes(machine.memory)} of memory. Without controls and re-solved "
        f"heads (controls=false nec=[]). Scores of all pictures on all concepts, {in_bytes(2 * job.N * job.K)} in half "
        "precision, are never made.",
        highlight=False,
    )
    if peak > machine.memory:
        raise UserError(f"this needs {in_bytes(peak)} of memory, {machine.name} has {in_bytes(machine.memory)}")


def _encoding(encoder: str, pretrained: str | None, cache: Path, workers: int = 2, batch_size: int = 256) -> Any:
    """A training configuration that only says how to encode."""
    from omegaconf import OmegaConf

    cfg: Any = OmegaConf.structured(schema.TrainConfig)
    named = encoder in schema.choices("encoder")
    settings = OmegaConf.load(schema.CONFIGS / "encoder" / f"{encoder}.yaml") if named else {"model": encoder}
    cfg = OmegaConf.merge(cfg, {"encoder": settings})
    cfg.encoder.pretrained = pretrained or cfg.encoder.pretrained
    cfg.encoder.num_workers, cfg.encoder.batch_size, cfg.cache = workers, batch_size, str(cache)
    return cfg


@concepts.command()
def lint(
    bank: Bank,
    dataset: Annotated[
        str | None, typer.Option(help="Check class names against this card, and what the encoder sees.")
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Where its images are, if the card does not say.")] = None,
    encoder: Encoder = "tiny_clip",
    pretrained: Annotated[str | None, typer.Option(help="Pretrained tag of an open_clip model.")] = None,
    cache: Cache = Path("cache"),
    limit: Annotated[int, typer.Option(help="Findings shown per kind.")] = 10,
) -> None:
    """Report leaked class names, phrases that are not visual, duplicates, over-long phrases, and (with a data set)
    concepts the encoder does not detect. Exit status 1 if a concept names its own class."""
    from cbm.concepts.lint import lint_bank, undetected
    from cbm.concepts.prepare import adopt_classes
    from cbm.concepts.readers import read_bank

    found_bank = read_bank(resolve_path(bank))
    if dataset is None:
        findings = lint_bank(found_bank)
    else:
        from cbm.inputs import encode_splits, load_encoder, read_images, text_encoder
        from cbm.run import set_up_logging

        set_up_logging()
        cfg = _encoding(encoder, pretrained, cache)
        cfg.dataset = schema.load_card(dataset)
        if root is not None:
            cfg.dataset.root = str(root)
        images = read_images(cfg.dataset, cache)
        found_bank = adopt_classes(found_bank, images.classes)
        tower = load_encoder(cfg.encoder)
        embeddings = text_encoder(tower, cache, True)(found_bank.texts)
        train = encode_splits(images, tower, cfg, ("train",)).train
        findings = lint_bank(found_bank, images.classes)
        findings += undetected(found_bank, embeddings, train.x, train.y, images.classes)
    kinds: dict[str, list] = {}
    for finding in findings:
        kinds.setdefault(finding.kind, []).append(finding)
    out.print(
        f"{found_bank.name}: {len(found_bank)} concepts, {len(found_bank.classes)} classes, {len(findings)} findings"
    )
    for kind, group in sorted(kinds.items(), key=lambda item: -len(item[1])):
        table = Table("concept", "detail", title=f"{kind} ({len(group)})", title_justify="left")
        for finding in group[:limit]:
            table.add_row(finding.text, finding.detail)
        out.print(table)
    raise typer.Exit(1 if "own class name" in kinds else 0)


@concepts.command()
def diff(before: Bank, after: Bank) -> None:
    """What changed between two banks: concepts added and removed, owners that differ."""
    from cbm.concepts.lint import diff_banks
    from cbm.concepts.readers import read_bank

    changes = diff_banks(read_bank(resolve_path(before)), read_bank(resolve_path(after)))
    out.print(f"{len(changes.added)} added, {len(changes.removed)} removed, {len(changes.owners)} with other owners")
    for sign, texts in (("+", changes.added), ("-", changes.removed)):
        for text in texts:
            out.print(f"{sign} {text}", markup=False, highlight=False)
    for text, (old, new) in changes.owners.items():
        out.print(f"~ {text}: {', '.join(old) or 'none'} -> {', '.join(new) or 'none'}", markup=False, highlight=False)


Phrases = Annotated[Path, typer.Option("--out", help="The bank to write: class -> phrases JSON.")]
Card = Annotated[str | None, typer.Option("--dataset", help="Take the class names from this card.")]
Pictures = Annotated[Path | None, typer.Option("--root", help="Where its images are, if the card does not say.")]
Names = Annotated[Path | None, typer.Option("--classes", help="Or from this file, one name per line.")]
MaxWords = Annotated[int, typer.Option(help="Leave out longer phrases.")]


@concepts.command()
def conceptnet(
    file: Annotated[Path, typer.Argument(help="conceptnet-assertions-*.csv[.gz], or the web service's answers.")],
    destination: Phrases,
    dataset: Card = None,
    root: Pictures = None,
    classes: Names = None,
    max_words: MaxWords = 2,
    cache: Cache = Path("cache"),
) -> None:
    """Make a bank of what a downloaded ConceptNet says about the classes."""
    from cbm.concepts.conceptnet import read_conceptnet

    names = _names_for(destination, dataset, root, classes, cache)
    bank = read_conceptnet(resolve_path(file), names, max_words=max_words, progress=True)
    _write_phrases(bank, names, destination)


@concepts.command()
def wordnet(
    folder: Annotated[Path, typer.Argument(help="The folder dict of a WordNet distribution.")],
    destination: Phrases,
    dataset: Card = None,
    root: Pictures = None,
    classes: Names = None,
    superclass: Annotated[
        str | None, typer.Option(help="What all classes are: tells the crane from the crane.")
    ] = None,
    max_words: MaxWords = 2,
    cache: Cache = Path("cache"),
) -> None:
    """Make a bank of what a downloaded WordNet says the classes are, and are made of."""
    from cbm.concepts.wordnet import read_wordnet

    names = _names_for(destination, dataset, root, classes, cache)
    bank = read_wordnet(resolve_path(folder), names, superclass=superclass, max_words=max_words)
    _write_phrases(bank, names, destination)


@concepts.command()
def v2c(
    dataset: Annotated[str, typer.Argument(help="A data set card: whose classes.")],
    destination: Annotated[Path, typer.Option("--out", help="The folder to write the bank into.")],
    root: Annotated[Path | None, typer.Option(help="Where its images are, if the card does not say.")] = None,
    encoder: Encoder = "tiny_clip",
    pretrained: Annotated[str | None, typer.Option(help="Pretrained tag of an open_clip model.")] = None,
    pool: Annotated[Path | None, typer.Option(help="Unlabelled pictures; without it the training pictures.")] = None,
    shots: Annotated[
        str, typer.Option(help="Labelled pictures per class (or all) that say what it looks like; 0: its name does.")
    ] = "0",
    vocabulary: Annotated[
        Path | None, typer.Option(help="Phrases, one per line; without it words by frequency.")
    ] = None,
    adjectives: Annotated[int, typer.Option(help="Frequent adjectives beside the visual ones.")] = 100,
    nouns: Annotated[int, typer.Option(help="Frequent nouns beside the visual ones.")] = 2000,
    patterns: Annotated[str, typer.Option(help="What a phrase may be, separated by commas.")] = (
        "adjective,noun,adjective noun"
    ),
    template: Annotated[
        list[str] | None, typer.Option(help="A prompt for the concepts, by default {}; again for the mean of several.")
    ] = None,
    pictures: Annotated[int, typer.Option(help="Pictures of the pool per class, those most like it.")] = 500,
    k: Annotated[int, typer.Option(help="Concepts of a picture that count.")] = 5,
    per_class: Annotated[int, typer.Option(help="Concepts kept per class.")] = 500,
    min_count: Annotated[
        int, typer.Option(help="Pictures that must say a concept; 0: as many as chance would hardly reach.")
    ] = 1,
    min_cosine: Annotated[float, typer.Option(help="A concept less like a picture is not counted.")] = -1.0,
    centred: Annotated[
        bool, typer.Option(help="Take off what all pictures share and all concepts share; off: as published.")
    ] = True,
    synonyms: Annotated[Path | None, typer.Option(help="More words that name a class, one per line.")] = None,
    seed: Annotated[int, typer.Option(help="Of the shots.")] = 0,
    cache: Cache = Path("cache"),
) -> None:  # fmt: skip
    """Make a bank of what unlabelled pictures say most in a vocabulary of words (interrupted: run it again)."""
    from cbm.codebook import CodebookSettings, encode_pool, learn_codebook, name_prototypes, picture_prototypes
    from cbm.concepts.readers import read_bank
    from cbm.concepts.vocabulary import build_vocabulary
    from cbm.data.vocabulary_store import VocabularyStore
    from cbm.files import write_atomically
    from cbm.inputs import encode_splits, load_encoder, read_images, text_encoder
    from cbm.run import set_up_logging

    set_up_logging()
    _not_there(destination)
    settings = CodebookSettings(pictures, k, per_class, min_count or None, min_cosine, centred)
    if shots != "all" and not shots.isdecimal():
        raise UserError(f"--shots is '{shots}'; expected a number of pictures, or all")
    cfg = _encoding(encoder, pretrained, cache)
    cfg.dataset = schema.load_card(dataset)
    if root is not None:
        cfg.dataset.root = str(root)
    images = read_images(cfg.dataset, cache)
    tower = load_encoder(cfg.encoder)
    if vocabulary is None:
        built = build_vocabulary(
            schema.BANKS / "visual_words.yaml", n_adjectives=adjectives, n_nouns=nouns,
            patterns=[pattern.strip() for pattern in patterns.split(",")],
        )  # fmt: skip
        texts, recipe = built.texts, built.recipe
    else:
        texts, recipe = tuple(read_bank(resolve_path(vocabulary)).texts), {"file": str(vocabulary)}
    out.print(f"{len(texts)} phrases in the vocabulary", highlight=False)
    templates = template or ["{}"]
    words = VocabularyStore(cache).encode(tower, texts, templates)
    train = encode_splits(images, tower, cfg, ("train",)).train if pool is None or shots != "0" else None
    features = train.x if pool is None and train is not None else encode_pool(resolve_path(pool or Path()), tower, cfg)
    if shots == "0" or train is None:
        prototypes = name_prototypes(images.classes, cfg.dataset.template, text_encoder(tower, cache, False))
    else:
        prototypes = picture_prototypes(train, shots if shots == "all" else int(shots), seed, images.classes)
    other_names = [] if synonyms is None else read_bank(resolve_path(synonyms)).texts
    book = learn_codebook(images.classes, prototypes, features, words, images.name, settings, other_names)
    book.bank.save(destination)
    record = {
        "encoder": tower.id, "fingerprint": tower.fingerprint, "dataset": images.name, "shots": shots,
        "pictures": str(pool or "training pictures"), "templates": templates, "words": recipe, **book.record,
    }  # fmt: skip
    write_atomically(destination / "generation.json", json.dumps(record, indent=1, ensure_ascii=False).encode())
    table = Table("class", "concepts", "above chance", "most counted")
    counts = {concept.text: concept.provenance["counts"] for concept in book.bank.concepts}
    for name in images.classes:
        own = [concept.text for concept in book.bank.concepts if name in concept.classes]
        own.sort(key=lambda text: -counts[text][name])
        table.add_row(escape(name), str(len(own)), str(book.record["above_chance"][name]), escape(", ".join(own[:5])))
    out.print(table)
    out.print(f"{len(book.bank)} concepts in {destination}", markup=False, highlight=False)


@concepts.command()
def llm(
    destination: Annotated[Path, typer.Option("--out", help="The folder to write: bank.json, review.html, ...")],
    model: Annotated[str, typer.Option(help="The model's name at the server.")],
    base_url: Annotated[str | None, typer.Option(help="Any OpenAI-compatible server; default: OpenAI.")] = None,
    dataset: Card = None,
    root: Pictures = None,
    classes: Names = None,
    prompts: Annotated[
        str, typer.Option(help="Of labo, label_free, descriptions, attributes, or YAML files of your own.")
    ] = "labo,label_free,descriptions",
    superclass: Annotated[
        str | None, typer.Option(help="What all classes are, e.g. bird; the card's, or object, by default.")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Requests in flight.")] = 8,
    timeout: Annotated[float, typer.Option(help="Seconds for one answer.")] = 120.0,
    retries: Annotated[int, typer.Option(help="Further tries when the server is busy or does not answer.")] = 6,
    temperature: Annotated[float | None, typer.Option(help="The server's own by default.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer; the server's own by default.")] = None,
    samples: Annotated[int, typer.Option(help="Times every question is asked.")] = 1,
    split: Annotated[bool, typer.Option(help="Take sentences apart with a second request.")] = True,
    skip_failed: Annotated[bool, typer.Option(help="Write the bank although some requests failed.")] = False,
    cache: Annotated[Path, typer.Option(help="Where answers are kept.")] = Path("cache/llm"),
    dry_run: Annotated[bool, typer.Option(help="Say what would be asked, and send nothing.")] = False,
    price_in: Annotated[float | None, typer.Option(help="US dollars per million prompt tokens.")] = None,
    price_out: Annotated[float | None, typer.Option(help="US dollars per million completion tokens.")] = None,
) -> None:
    """Have a language model write a bank for the classes (interrupted: run it again, nothing is paid for twice)."""
    from cbm.concepts.llm import check_installed

    check_installed()
    from cbm.concepts.llm.client import Endpoint
    from cbm.concepts.llm.command import make_bank
    from cbm.concepts.llm.generate import Settings

    names = _names_for(destination, dataset, root, classes, Path("cache"))
    endpoint = Endpoint(model, base_url, concurrency, timeout, retries)
    if superclass is None:
        superclass = (dataset and schema.load_card(dataset).superclass) or "object"
    settings = Settings(superclass, temperature, max_tokens, samples, split, skip_failed)
    make_bank(
        names, destination, endpoint, prompts, settings, cache, dry_run=dry_run, price_in=price_in, price_out=price_out
    )


def _not_there(destination: Path) -> None:
    """Nothing is overwritten."""
    if destination.exists():
        raise UserError(f"'{destination}' is there already: remove it or choose another --out")


def _names_for(destination: Path, dataset: str | None, root: Path | None, file: Path | None, cache: Path) -> list[str]:
    """Class names for a bank that is not there yet."""
    from cbm.run import set_up_logging

    set_up_logging()
    _not_there(destination)
    return _class_names(dataset, root, file, cache)


def _write_phrases(bank: "ConceptBank", names: list[str], destination: Path) -> None:
    """Write class -> phrases; say how many each class has and what was left out."""
    from collections import Counter

    from cbm.concepts.findings import phrases_by_class
    from cbm.files import write_atomically

    phrases = phrases_by_class(bank, names)
    write_atomically(destination, json.dumps(phrases, indent=1, ensure_ascii=False).encode())
    table = Table("class", "concepts", "first")
    for name, texts in phrases.items():
        table.add_row(escape(name), str(len(texts)), escape(", ".join(texts[:4])))
    out.print(table)
    reasons = Counter(dropped.reason.split(" '")[0] for dropped in bank.dropped)
    left_out = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "nothing"
    out.print(f"{len(bank)} concepts in {destination}; left out: {left_out}", markup=False, highlight=False)


def _class_names(dataset: str | None, root: Path | None, file: Path | None, cache: Path) -> list[str]:
    """Class names of a card, or of a file with one per line."""
    if dataset is not None and file is None:
        from cbm.inputs import read_images

        card = schema.load_card(dataset)
        card.root = str(root) if root is not None else card.root
        return read_images(card, cache).classes
    if dataset is not None or file is None:
        raise UserError("say either --dataset CARD or --classes NAMES.txt")
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read class names from '{file}': {error}") from error
    if not any(names):
        raise UserError(f"'{file}' has no class names (one per line)")
    return [name for name in dict.fromkeys(names) if name]


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    cache: Cache = Path("cache"),
) -> None:
    """Write report.html of a finished run again."""
    from cbm.run import rewrite_report

    out.print(str(rewrite_report(run, cache)), highlight=False)


@app.command()
def spurious(
    runs: Annotated[list[Path], typer.Argument(help="Finished runs on a data set that names spurious concepts.")],
    cache: Cache = Path("cache"),
) -> None:
    """Edit spurious concepts out of trained models: test accuracy before and after, mean and standard error over the
    runs."""
    from cbm.spurious import edit_spurious, mean_and_error

    found = [edit_spurious(run, cache) for run in runs]
    table = Table("", "test accuracy", "change", title=f"{len(runs)} run(s)", title_justify="left")
    for name in found[0]:
        change = [values[name] - values["unedited"] for values in found]
        table.add_row(name, mean_and_error([values[name] for values in found]), mean_and_error(change, signed=True))
    out.print(table)


@app.command()
def intervene(
    run: Annotated[Path, typer.Argument(help="A finished run on a data set that knows concepts.")],
    policies: Annotated[str, typer.Option(help="Which to compare, separated by commas.")] = (
        "random,ucp,cctp,ectp,eudtp,coop,oracle"
    ),
    questions: Annotated[int | None, typer.Option(help="Per picture; by default about everything.")] = None,
    noise: Annotated[float, typer.Option(help="Share of wrong answers.")] = 0.0,
    answers: Annotated[
        Path | None, typer.Option(help="An expert's answers (CSV: picture, concepts), instead of the truth.")
    ] = None,
    expert: Annotated[
        str | None, typer.Option(help="Ask this vision-language model instead, behind an OpenAI-compatible server.")
    ] = None,
    base_url: Annotated[str | None, typer.Option(help="Its server; default: OpenAI.")] = None,
    concurrency: Annotated[int, typer.Option(help="Requests in flight.")] = 8,
    propagate: Annotated[
        bool, typer.Option(help="What is told moves concepts that go with it within classes.")
    ] = False,
    cost: Annotated[list[str] | None, typer.Option(help="Of a question about a concept or group: NAME=COST.")] = None,
    seed: Annotated[int, typer.Option(help="Of the noise and of the random order.")] = 0,
    cache: Cache = Path("cache"),
) -> None:
    """Ask about one concept after the other, by several policies: accuracy after each question."""
    from cbm.interventions import question_curves

    costs = {}
    for entry in cost or []:
        name, _, value = entry.rpartition("=")
        try:
            costs[name] = float(value)
        except ValueError as error:
            raise UserError(f"--cost {entry}: expected NAME=COST, such as 'wing colour=2'") from error
    names = [name.strip() for name in policies.split(",")]
    if expert is not None and answers is not None:
        raise UserError("--answers and --expert: say one of them")
    endpoint = None
    if expert is not None:
        from cbm.concepts.llm import check_installed

        check_installed()
        from cbm.concepts.llm.client import Endpoint

        endpoint = Endpoint(expert, base_url, concurrency=concurrency)
    curves = question_curves(
        run, cache, policies=names, questions=questions, noise=noise, answers=answers, expert=endpoint,
        propagate=propagate, costs=costs, seed=seed,
    )  # fmt: skip
    last = len(next(iter(curves.values())).accuracy) - 1
    shown = sorted({round(last * share) for share in (0, 0.1, 0.2, 0.3, 0.5, 0.75, 1)})
    table = Table("questions", *map(str, shown), "area", "cost at the end")
    for name, curve in curves.items():
        values = [f"{curve.accuracy[step]:.3f}" for step in shown]
        table.add_row(name, *values, f"{curve.area:.3f}", f"{curve.cost[-1]:.1f}")
    out.print(table)


@app.command()
def adapt(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    dataset: Annotated[str, typer.Argument(help="The card of the other domain: the same classes.")],
    root: Annotated[Path | None, typer.Option(help="Where its images are, if the card does not say.")] = None,
    editors: Annotated[str, typer.Option(help="Which to compare, separated by commas.")] = (
        "test_time,prune,recentre,conda,refit"
    ),
    shots: Annotated[int, typer.Option(help="Labelled pictures per class.")] = 4,
    draws: Annotated[int, typer.Option(help="How often they are drawn.")] = 1,
    guard: Annotated[str, typer.Option(help="lenient, default or strict: what must hold for pictures left out.")] = (
        "default"
    ),
    protect: Annotated[list[str] | None, typer.Option(help="A concept that test_time may not mask.")] = None,
    destination: Annotated[
        Path | None, typer.Option("--out", help="Write the first editor's edits of the first draw, for eval.py edits=.")
    ] = None,
    cache: Cache = Path("cache"),
) -> None:
    """Correct a model for another domain with a few labelled pictures: editors side by side."""
    from cbm.adaptation import adapt as adapted
    from cbm.adaptation import overlap
    from cbm.spurious import mean_and_error

    names = [name.strip() for name in editors.split(",")]
    found = adapted(
        run, dataset, cache, editors=names, root=root, shots=shots, draws=draws, guard=guard,
        protect=tuple(protect or ()),
    )  # fmt: skip
    title = f"{shots} labelled pictures per class, {draws} draw(s)"
    table = Table(
        "", "there", "change", "worse", "at home", "edits", "concepts", "overlap", title=title,
        caption="accuracy in percent; draws that are worse, and that edit; at home: were it applied there too",
    )  # fmt: skip
    for name in found[0].target:
        there = [each.target[name] for each in found]
        change = [each.target[name] - each.target["unedited"] for each in found]
        proposals = [each.proposals[name] for each in found if name in each.proposals]
        counts = [len({edit.concept for edit in p.edits.edits}) for p in proposals if p.edits]
        table.add_row(
            name, mean_and_error(there), mean_and_error(change, signed=True), str(sum(c < 0 for c in change)),
            mean_and_error([each.source[name] for each in found]),
            *((str(len(counts)), f"{sum(counts) / len(counts):.1f}", f"{overlap(proposals):.2f}") if counts else ()),
        )  # fmt: skip
    out.print(table)
    edits = found[0].proposals[names[0]].edits
    for edit in edits.edits if edits else ():
        out.print(f"  {edit}", markup=False, highlight=False)
    if destination is not None:
        if edits is None:
            raise UserError(f"--out: what {names[0]} does cannot be said as edits; name an editor that edits first")
        edits.save(destination)
        out.print(f"{len(edits)} edits in {destination}", markup=False, highlight=False)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run directories.")],
    style: Annotated[str, typer.Option(help="rich, markdown, latex or csv.")] = "rich",
    destination: Annotated[Path | None, typer.Option("--out", help="Write a page with table and curves here.")] = None,
) -> None:
    """One table of several runs: mean and standard deviation over seeds."""
    from cbm.report.compare import compare_runs, format_table

    rows = compare_runs(runs)
    print(format_table(rows, style))
    if destination is not None:
        from cbm.report.comparison import write_comparison

        write_comparison(destination, rows)
        print(f"written to {destination}", file=sys.stderr)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="A finished run, or hf-hub:ORG/NAME.")],
    destination: Annotated[Path, typer.Option("--out", help="The file to write: model.onnx, or model.pt2.")],
    kind: Annotated[str | None, typer.Option("--format", help="onnx | pt2; by default by the file's name.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Also return so many concepts of every picture.")] = None,
) -> None:
    """Write a model for places without cbm: features in, logits (and concepts) out (docs/portable.md)."""
    from cbm.trained import load

    _not_there(destination)
    model = load(run)
    path = model.export(destination, top_k=top_k, format=kind)
    count = 0 if model.bank is None else len(model.bank)
    size = path.stat().st_size / 1e6
    out.print(f"{path}: {len(model.classes)} classes, {count} concepts, {size:.1f} MB", highlight=False, markup=False)


@app.command(name="app")
def explore(
    run: Annotated[str, typer.Argument(help="A finished run (RUN, or run=RUN).")],
    port: Annotated[int | None, typer.Option(help="By default the first free one from 7860 on.")] = None,
    dataset: Annotated[str | None, typer.Option(help="Look at the pictures of this card: the same classes.")] = None,
    root: Annotated[Path | None, typer.Option(help="Where its images are, if the card does not say.")] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    share: Annotated[bool, typer.Option("--share", help="A public address too, through Gradio's server.")] = False,
    cache: Cache = Path("cache"),
) -> None:
    """Open a run in the browser: see why, change it, and see what follows. On this computer only; Ctrl-C ends it."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError("the explorer needs Gradio: uv pip install -e '.[app]' -c constraints.txt")
    from cbm.app import Explorer
    from cbm.run import set_up_logging

    set_up_logging()
    explorer = Explorer(run.removeprefix("run="), cache, dataset=dataset, root=root, name=split)
    from cbm.app.page import launch

    launch(explorer, port, share=share, opened=lambda at: out.print(f"{run} is open at {at}", highlight=False))


def main() -> None:
    """Run a command; one line and exit status 2 on bad input."""
    try:
        app()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
