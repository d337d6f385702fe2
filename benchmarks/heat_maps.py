"""Do heat maps lie on the part of the bird that the concept is about? Bundled encoder, test birds, known parts.

    python benchmarks/heat_maps.py

Prints a markdown table: mean AUROC of the map against the pixels of the part, by method, and the part's share of the
picture.
"""

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate, normalize
from torchmetrics.functional.classification import binary_auroc

import cbm.encoders
from cbm.data.birds import ATTRIBUTES, GROUPS, part_pixels, render, sample
from cbm.encoders import create_encoder
from cbm.layers import ConceptBottleneck, LinearHead
from cbm.trained.heat_map import METHODS, heat_map

PARTS = [group for group in ATTRIBUTES if group.endswith("colour")]
PER_SPECIES, SMALLEST = 2, 12  # birds; pixels of a part that can be seen


def main() -> None:
    """Measure and print."""
    encoder = create_encoder(f"local-dir:{cbm.encoders.__path__[0]}/tiny_clip", device="cpu")
    attributes, _, keys = sample("birds", "test", PER_SPECIES)
    pictures = [Image.fromarray(picture) for picture in render(attributes, keys)]
    print("| part | birds | share of the picture |", " | ".join(METHODS), "|")
    print("|---|---|---|" + "---|" * len(METHODS))
    for group in PARTS:
        texts, values = list(ATTRIBUTES[group].values()), attributes[:, GROUPS.index(group)]
        concepts = normalize(encoder.encode_text(texts), dim=1)
        model = ConceptBottleneck(concepts, LinearHead(torch.zeros(2, len(texts))))
        parts = torch.from_numpy(part_pixels(attributes, group, keys))
        seen = [n for n in range(len(parts)) if int(parts[n].sum()) >= SMALLEST]
        aurocs = {
            method: [
                auroc(heat_map(encoder, model, int(values[n]), pictures[n], method).values, parts[n]) for n in seen
            ]
            for method in METHODS
        }
        share = float(parts[seen].double().mean())
        means = " | ".join(f"{np.mean(found):.2f} ± {np.std(found):.2f}" for found in aurocs.values())
        print(f"| {group} | {len(seen)} | {share:.1%} | {means} |")


def auroc(values: torch.Tensor, part: torch.Tensor) -> float:
    """How well a map ``[h, w]`` ranks the pixels ``[H, W]`` of the part above the others."""
    fine = interpolate(values[None, None], tuple(part.shape), mode="bilinear")
    return float(binary_auroc(fine.flatten().double().sigmoid(), part.flatten().int()))


if __name__ == "__main__":
    main()
