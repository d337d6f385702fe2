"""``python -m cbm concepts``: make concept banks, and look after them."""

import json
import logging
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from cbm import config as schema
from cbm.commands.asking import AllowHttp, MaxCostTokens, MaxRequests
from cbm.commands.shared import (
    Bank,
    Cache,
    EncoderName,
    Json,
    Pretrained,
    Root,
    encoder_settings,
    names_in,
    not_there,
    out,
    read_card,
    show,
)
from cbm.errors import UserError
from cbm.files import new_folder, resolve_path, write_atomically
from cbm.files.names import one_form
from cbm.files.parsing import read_text

if TYPE_CHECKING:
    from cbm.concepts.bank import ConceptBank
    from cbm.concepts.lint import Finding

log = logging.getLogger("cbm")

app = typer.Typer(help="Look after concept banks.", no_args_is_help=True)

Phrases = Annotated[Path, typer.Option("--out", help="The bank to write: class -> phrases JSON.")]
CardOption = Annotated[str | None, typer.Option("--dataset", help="Take the class names from this card.")]
Names = Annotated[Path | None, typer.Option("--classes", help="Or from this file, one name per line.")]
MaxWords = Annotated[int, typer.Option(help="Leave out longer phrases.")]


@app.command()
def lint(
    bank: Bank,
    dataset: Annotated[
        str | None, typer.Option(help="Card to check class names against, and what the encoder sees in its images.")
    ] = None,
    root: Root = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            help="Encoder that is to read the phrases; default: tiny_clip with a data set, else CLIP's tokenizer."
        ),
    ] = None,
    pretrained: Pretrained = None,
    cache: Cache = Path("cache"),
    limit: Annotated[int, typer.Option(help="Number of findings shown per kind.")] = 10,
    as_json: Json = False,
) -> None:
    """Report leaked class names, phrases that are not visual or that the encoder cannot read, duplicates, over-long
    phrases, classes without phrases, and (with a data set) concepts the encoder does not detect. Exit status 1 if a
    concept names its own class."""
    from cbm.concepts.readers import read_bank

    found_bank = read_bank(resolve_path(bank))
    reader = "CLIP's tokenizer" if encoder is None and dataset is None else "the encoder"
    log.info("%d phrases; loading %s", len(found_bank), reader)
    from cbm.concepts.lint import lint_bank, undetected
    from cbm.concepts.prepare import adopt_classes

    if dataset is None:
        from cbm.encoders import open_clip

        if encoder is None:
            pieces, one = open_clip.pieces(open_clip.clip_tokenizer(), found_bank.texts), True
        else:
            tower, _ = encoder_settings(encoder, pretrained, cache)
            pieces, one = tower.pieces(found_bank.texts), tower.one_language
        findings = lint_bank(found_bank, pieces=pieces, one_language=one)
    else:
        from cbm.data.encoded import encode_splits
        from cbm.data.text_store import text_encoder

        _, images = read_card(dataset, root, cache)
        found_bank = adopt_classes(found_bank, images.classes, strict=False)
        tower, settings = encoder_settings(encoder or "tiny_clip", pretrained, cache)
        log.info("encoding %d phrases and the training images of '%s'", len(found_bank), images.name)
        embeddings = text_encoder(tower, cache, True)(found_bank.texts)
        train = encode_splits(images, tower, settings, ("train",))[1].train
        pieces = tower.pieces(found_bank.texts)
        findings = lint_bank(found_bank, images.classes, pieces=pieces, one_language=tower.one_language)
        findings += undetected(found_bank, embeddings, train.x, train.y, images.classes)
    if as_json:
        known = {"bank": found_bank.name, "concepts": len(found_bank), "classes": len(found_bank.classes)}
        show(None, {**known, "findings": [asdict(finding) for finding in findings]}, as_json)
    else:
        _show_findings(found_bank, findings, limit)
    raise typer.Exit(1 if any(finding.kind == "own class name" for finding in findings) else 0)


def _show_findings(bank: "ConceptBank", findings: "list[Finding]", limit: int) -> None:
    """Print a table per kind of finding, at most ``limit`` of each."""
    kinds: dict[str, list] = {}
    for finding in findings:
        kinds.setdefault(finding.kind, []).append(finding)
    counts = f"{len(bank)} concepts, {len(bank.classes)} classes, {len(findings)} findings"
    out.print(f"{bank.name}: {counts}")
    for kind, group in sorted(kinds.items(), key=lambda item: -len(item[1])):
        table = Table("concept", "detail", title=f"{kind} ({len(group)})", title_justify="left")
        for finding in group[:limit]:
            table.add_row(finding.text, finding.detail)
        out.print(table)


@app.command()
def diff(before: Bank, after: Bank, as_json: Json = False) -> None:
    """What changed between two banks: concepts added and removed, owners that differ."""
    from cbm.concepts.lint import diff_banks
    from cbm.concepts.readers import read_bank

    changes = diff_banks(read_bank(resolve_path(before)), read_bank(resolve_path(after)))
    if as_json:
        owners = {text: {"before": old, "after": new} for text, (old, new) in changes.owners.items()}
        return show(None, {"added": changes.added, "removed": changes.removed, "owners": owners}, as_json)
    out.print(f"{len(changes.added)} added, {len(changes.removed)} removed, {len(changes.owners)} with other owners")
    for sign, texts in (("+", changes.added), ("-", changes.removed)):
        for text in texts:
            out.print(f"{sign} {text}")
    for text, (old, new) in changes.owners.items():
        out.print(f"~ {text}: {', '.join(old) or 'none'} -> {', '.join(new) or 'none'}")


@app.command()
def conceptnet(
    file: Annotated[Path, typer.Argument(help="conceptnet-assertions-*.csv[.gz], or answers of the web service.")],
    destination: Phrases,
    dataset: CardOption = None,
    root: Root = None,
    classes: Names = None,
    max_words: MaxWords = 2,
    cache: Cache = Path("cache"),
) -> None:
    """Make a bank of what a downloaded ConceptNet says about the classes."""
    from cbm.concepts.conceptnet import read_conceptnet

    not_there(destination)
    names = _class_names(dataset, root, classes, cache)
    bank = read_conceptnet(resolve_path(file), names, max_words=max_words, progress=True)
    _write_phrases(bank, names, destination)


@app.command()
def wordnet(
    folder: Annotated[Path, typer.Argument(help="Folder 'dict' of a WordNet distribution.")],
    destination: Phrases,
    dataset: CardOption = None,
    root: Root = None,
    classes: Names = None,
    superclass: Annotated[
        str | None,
        typer.Option(help='What all classes are, e.g. bird; needed where a name has several senses ("crane").'),
    ] = None,
    max_words: MaxWords = 2,
    cache: Cache = Path("cache"),
) -> None:
    """Make a bank of what a downloaded WordNet says the classes are, and are made of."""
    from cbm.concepts.wordnet import read_wordnet

    not_there(destination)
    names = _class_names(dataset, root, classes, cache)
    bank = read_wordnet(resolve_path(folder), names, superclass=superclass, max_words=max_words)
    _write_phrases(bank, names, destination)


@app.command()
def v2c(
    dataset: Annotated[str, typer.Argument(help="A data set card, whose classes the bank is for.")],
    destination: Annotated[Path, typer.Option("--out", help="The folder to write the bank into.")],
    root: Root = None,
    encoder: EncoderName = "tiny_clip",
    pretrained: Pretrained = None,
    pool: Annotated[
        Path | None, typer.Option(help="Folder of unlabelled images; default: the training images.")
    ] = None,
    shots: Annotated[
        str,
        typer.Option(help="Labelled images per class (or all) that show what it looks like; 0 uses its name instead."),
    ] = "0",
    vocabulary: Annotated[
        Path | None, typer.Option(help="File of phrases, one per line; default: frequent words.")
    ] = None,
    adjectives: Annotated[int, typer.Option(help="Number of frequent adjectives beside the visual ones.")] = 100,
    nouns: Annotated[int, typer.Option(help="Number of frequent nouns beside the visual ones.")] = 2000,
    patterns: Annotated[
        str, typer.Option(help="Patterns a phrase may follow, separated by commas.")
    ] = "adjective,noun,adjective noun",
    template: Annotated[
        list[str] | None,
        typer.Option(help='Prompt template, default "{}". Repeat the option to average several.'),
    ] = None,
    pictures: Annotated[int, typer.Option(help="Images of the pool per class: those most like the class.")] = 500,
    k: Annotated[int, typer.Option(help="Number of concepts that are counted per image.")] = 5,
    per_class: Annotated[int, typer.Option(help="Number of concepts kept per class.")] = 500,
    min_count: Annotated[
        int,
        typer.Option(help="Minimum number of images a concept must appear in; 0 picks a number chance rarely reaches."),
    ] = 1,
    min_cosine: Annotated[
        float, typer.Option(help="Ignore a concept whose cosine with the image is below this.")
    ] = -1.0,
    centred: Annotated[
        bool, typer.Option(help="Subtract the mean image and the mean concept first (not in the paper).")
    ] = True,
    synonyms: Annotated[
        Path | None, typer.Option(help="File of further words that name a class, one per line.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed for drawing the shots.")] = 0,
    cache: Cache = Path("cache"),
) -> None:
    """Make a bank of the words that fit unlabelled images best (interrupted: run it again)."""
    from cbm.concepts.codebook import CodebookSettings, make_codebook
    from cbm.concepts.readers import read_bank
    from cbm.concepts.vocabulary import Vocabulary, build_vocabulary

    not_there(destination)
    settings = CodebookSettings(pictures, k, per_class, min_count or None, min_cosine, centred)
    if shots != "all" and not shots.isdecimal():
        raise UserError(f"--shots is '{shots}'; expected a number of pictures, or all")
    card, images = read_card(dataset, root, cache)
    tower, encoding = encoder_settings(encoder, pretrained, cache)
    if vocabulary is None:
        lists = schema.BANKS / "visual_words.yaml"
        words = build_vocabulary(lists, n_adjectives=adjectives, n_nouns=nouns, patterns=names_in(patterns))
    else:
        words = Vocabulary(tuple(read_bank(resolve_path(vocabulary)).texts), {"file": str(vocabulary)})
    out.print(f"{len(words.texts)} phrases in the vocabulary")
    book = make_codebook(
        images,
        tower,
        encoding,
        words,
        settings,
        template=card.template,
        templates=template or ["{}"],
        pool=None if pool is None else resolve_path(pool),
        shots=shots if shots == "all" else int(shots),
        seed=seed,
        synonyms=[] if synonyms is None else read_bank(resolve_path(synonyms)).texts,
    )
    with new_folder(destination) as folder:
        book.bank.save(folder)
        write_atomically(folder / "generation.json", json.dumps(book.record, indent=1, ensure_ascii=False).encode())
    table = Table("class", "concepts", "above chance", "most counted")
    for name, texts in book.most_counted().items():
        above = str(book.record["above_chance"][name])
        table.add_row(name, str(len(texts)), above, ", ".join(texts[:5]))
    out.print(table)
    out.print(f"{len(book.bank)} concepts in {destination}")


@app.command()
def llm(
    destination: Annotated[Path, typer.Option("--out", help="The folder to write: bank.json, review.html, ...")],
    model: Annotated[str, typer.Option(help="Name of the model at the server.")],
    base_url: Annotated[
        str | None, typer.Option(help="Address of an OpenAI-compatible server; default: OpenAI.")
    ] = None,
    dataset: CardOption = None,
    root: Root = None,
    classes: Names = None,
    prompts: Annotated[
        str, typer.Option(help="Prompts to use: labo, label_free, descriptions, attributes, or YAML files of your own.")
    ] = "labo,label_free,descriptions",
    superclass: Annotated[
        str | None, typer.Option(help="What all classes are, e.g. bird; the card's, or object, by default.")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Requests at the same time.")] = 8,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for one answer.")] = 120.0,
    retries: Annotated[
        int, typer.Option(help="Number of further tries when the server is busy or does not answer.")
    ] = 6,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature; default: the server's own.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer in tokens; default: the server's own.")] = None,
    samples: Annotated[int, typer.Option(help="Number of times every question is asked.")] = 1,
    split: Annotated[bool, typer.Option(help="Split sentences into phrases with a second request.")] = True,
    skip_failed: Annotated[bool, typer.Option(help="Write the bank although some requests failed.")] = False,
    max_requests: MaxRequests = None,
    max_cost_tokens: MaxCostTokens = None,
    allow_http: AllowHttp = False,
    cache: Annotated[Path, typer.Option(help="Folder in which answers are kept.")] = Path("cache/llm"),
    dry_run: Annotated[bool, typer.Option(help="Print what would be asked, and send nothing.")] = False,
    price_in: Annotated[float | None, typer.Option(help="Price in US dollars per million prompt tokens.")] = None,
    price_out: Annotated[float | None, typer.Option(help="Price in US dollars per million completion tokens.")] = None,
) -> None:
    """Have a language model write a bank for the classes (interrupted: run it again, nothing is paid for twice)."""
    from cbm.concepts.llm import check_installed

    check_installed()
    from cbm.concepts.llm.command import make_bank
    from cbm.concepts.llm.endpoint import Endpoint
    from cbm.concepts.llm.generate import Settings

    not_there(destination)
    names = _class_names(dataset, root, classes, Path("cache"))
    endpoint = Endpoint(
        model, base_url, concurrency, timeout, retries,
        max_requests=max_requests, max_cost_tokens=max_cost_tokens, allow_http=allow_http,
    )  # fmt: skip
    if superclass is None:
        superclass = (dataset and schema.load_card(dataset).superclass) or "object"
    settings = Settings(superclass, temperature, max_tokens, samples, split, skip_failed)
    make_bank(
        names, destination, endpoint, prompts, settings, cache, dry_run=dry_run, price_in=price_in, price_out=price_out
    )


def _write_phrases(bank: "ConceptBank", names: list[str], destination: Path) -> None:
    """Write class -> phrases; say how many each class has and what was left out."""
    from cbm.concepts.findings import phrases_by_class

    phrases = phrases_by_class(bank, names)
    write_atomically(destination, json.dumps(phrases, indent=1, ensure_ascii=False).encode())
    table = Table("class", "concepts", "first")
    for name, texts in phrases.items():
        table.add_row(name, str(len(texts)), ", ".join(texts[:4]))
    out.print(table)
    reasons = Counter(dropped.reason.split(" '")[0] for dropped in bank.dropped)
    left_out = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "nothing"
    out.print(f"{len(bank)} concepts in {destination}; left out: {left_out}")


def _class_names(dataset: str | None, root: Path | None, file: Path | None, cache: Path) -> list[str]:
    """Class names of a card, or of a file with one per line."""
    if dataset is not None and file is None:
        return read_card(dataset, root, cache)[1].classes
    if dataset is not None or file is None:
        raise UserError("say either --dataset CARD or --classes NAMES.txt")
    try:
        names = [one_form(line) for line in read_text(file).splitlines()]
    except UserError as error:
        raise UserError(f"cannot read class names from '{file}': {error}") from error
    if not any(names):
        raise UserError(f"'{file}' has no class names (one per line)")
    return [name for name in dict.fromkeys(names) if name]
