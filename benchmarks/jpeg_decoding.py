"""Large JPEGs at a fraction of their size: how much faster, and how far the features move.

    python benchmarks/jpeg_decoding.py --images PICTURES [--encoder local-dir:PATH] [--count 6]

Enlarges photographs of a folder to 12 megapixels, with noise of 0, 2 and 4 grey values (a camera's files are larger
than smooth ones, and the time to unpack them is the same at any size), and reads each in full and as cbm does for this
encoder.
"""

import argparse
import io
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image

from cbm.config import EncoderConfig
from cbm.data.images import list_images
from cbm.encoders import load_encoder
from cbm.files.pictures import open_picture

SIZE = (4000, 3000)
TINY_CLIP = f"local-dir:{Path(__file__).resolve().parents[1] / 'cbm/encoders/tiny_clip'}"


def enlarged(picture: Image.Image, noise: float, seed: int) -> io.BytesIO:
    """A JPEG of 12 megapixels."""
    pixels = np.asarray(picture.resize(SIZE, Image.Resampling.BICUBIC)).astype(np.int16)
    grain = np.random.default_rng(seed).normal(0, noise, (*SIZE[::-1], 1)).astype(np.int16)
    file = io.BytesIO()
    Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file


def timed(work, *arguments):
    """What ``work`` returns, and its seconds of CPU time."""
    began = time.process_time()
    found = work(*arguments)
    return found, time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of photographs, at any depth")
    parser.add_argument("--encoder", default=TINY_CLIP, help="model, as encoder.model=")
    parser.add_argument("--count", type=int, default=6, help="photographs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    encoder = load_encoder(OmegaConf.merge(OmegaConf.structured(EncoderConfig), {"model": options.encoder}))
    files = list_images(options.images)
    chosen = [files[row] for row in np.linspace(0, len(files) - 1, options.count).astype(int)]
    print(f"{encoder.id}: {encoder.least} px suffice along the shorter side")
    for noise in (0, 2, 4):
        decoded, prepared, cosines, sizes = [], [], [], []
        for seed, path in enumerate(chosen):
            file = enlarged(open_picture(path), noise, seed)
            sizes.append(len(file.getvalue()) / 1e6)
            (whole, a), (part, b) = timed(open_picture, file), timed(open_picture, file, encoder.least)
            (x, c), (y, d) = timed(encoder.preprocess, whole), timed(encoder.preprocess, part)
            decoded.append(a / b)
            prepared.append((a + c) / (b + d))
            cosines.append(float(torch.cosine_similarity(*encoder.encode_images(torch.stack([x, y])), dim=0)))
        print(
            f"noise {noise}, {statistics.median(sizes):.1f} MB: decoded at {part.width} x {part.height}, "
            f"{statistics.median(decoded):.1f} times as fast; the encoder's input {statistics.median(prepared):.1f} "
            f"times; cosine {min(cosines):.4f} or more, median {statistics.median(cosines):.4f}"
        )


if __name__ == "__main__":
    main()
