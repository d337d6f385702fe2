"""Do heat maps show where a score comes from, and what do deletion curves hide? A finished run on paper birds.

    python benchmarks/faithfulness.py regions RUN
    python benchmarks/faithfulness.py refit RUN [--cache cache]

``regions`` prints a markdown table of what falls when patches of test birds are deleted, by the score of the colour
that a part of the bird has; ``refit`` one of the concepts that matter most, held at their mean and solved without.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch.nn.functional import normalize

import cbm
from cbm.data.birds import ATTRIBUTES, GROUPS, part_pixels, render, sample
from cbm.editing import alike
from cbm.layers import require_linear
from cbm.metrics.refit import refit_deletion
from cbm.trained.regions import compare_regions, delete_regions

PARTS = ("belly colour", "breast colour", "wing colour", "crown colour", "tail colour")
PER_SPECIES, SMALLEST, TRAINING = 5, 12, 10  # birds; pixels of a part that can be seen
CONCEPTS = 10


def regions(run: Path) -> None:
    """For every part: birds on which it can be seen, their own colour's score, and another part's as the other map."""
    trained = cbm.load(run)
    model, bank, encoder = require_linear(trained.model, trained.bank), trained.bank, trained.encoder
    attributes, _, keys = sample("birds", "test", PER_SPECIES)
    pictures = [Image.fromarray(picture) for picture in render(attributes, keys)]
    known, _, known_keys = sample("birds", "train", TRAINING)
    training = torch.stack([encoder.preprocess(Image.fromarray(picture)) for picture in render(known, known_keys)])
    colour, x = training.mean(dim=(0, 2, 3)), normalize(encoder.encode_images(training), dim=1)
    columns = {group: [bank.index(text) for text in ATTRIBUTES[group].values()] for group in PARTS}
    spread = model.scores(x).std(dim=0)
    print("| part | birds | patches | against | score: blur, colour, border | in birds | logit | verdict |")
    print("|---|---|---|---|---|---|---|---|")
    for group, aside in zip(PARTS, (*PARTS[2:], *PARTS[:2])):
        parts = torch.from_numpy(part_pixels(attributes, group, keys))
        values, others = (attributes[:, GROUPS.index(name)] for name in (group, aside))
        seen = [n for n in range(len(parts)) if int(parts[n].sum()) >= SMALLEST]
        found = []
        for n in seen:
            column, other = columns[group][int(values[n])], columns[aside][int(others[n])]
            found.append(delete_regions(encoder, model, column, other, pictures[n], colour,
                                        spread=float(spread[column]), seed=n))  # fmt: skip
        for row in compare_regions(found):
            more, logit = (", ".join(f"{value:+.2f}" for value in each.values()) for each in (row.more, row.logit))
            wins = ", ".join(f"{value:.0%}" for value in row.wins.values())
            print(f"| {group} | {len(seen)} | {row.share:.0%} | {row.control} | {more} | {wins} | {logit} | "
                  f"{row.verdict} |")  # fmt: skip


def refit(run: Path, cache: Path) -> None:
    """The concepts that matter most to a run, alone and with those that the encoder cannot tell from them."""
    trained = cbm.load(run)
    model, bank = require_linear(trained.model, trained.bank), trained.bank
    _, data = trained.read(("train", "test"), cache=cache)
    first = model.importance().abs().amax(dim=0).topk(CONCEPTS).indices.tolist()
    groups = []
    for k in first:
        own = torch.zeros(len(bank), dtype=torch.bool)
        own[k] = True
        groups.append(alike(model, own).nonzero().flatten().tolist())
    found = refit_deletion(model, data.train, data.test, len(data.classes), [*([k] for k in first), *groups])
    print("| concept | alone: held | solved anew | with alike, together | held | solved anew |")
    print("|---|---|---|---|---|---|")
    for k, one, more in zip(first, found, found[CONCEPTS:]):
        print(f"| {bank.texts[k]} | {one.held:.1%} | {one.refit:.1%} | {len(more.columns)} | {more.held:.1%} | "
              f"{more.refit:.1%} |")  # fmt: skip
    print(f"accuracy {found[0].accuracy[0]:.3f} at 5 concepts per class")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("regions", "refit"))
    parser.add_argument("run", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("cache"))
    arguments = parser.parse_args()
    if arguments.what == "refit":
        refit(arguments.run, arguments.cache)
    else:
        regions(arguments.run)


if __name__ == "__main__":
    main()
