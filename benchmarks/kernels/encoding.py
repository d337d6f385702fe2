"""Pictures to features: where the time goes. Needs open_clip and torchvision; without them there are no rows."""

from __future__ import annotations

import io
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import torch
from kernels.bench import Bench
from torch import Tensor

SHAPES = [("ViT-B-32", 512), ("ViT-L-14", 256), ("RN50", 512)]
TINY: list[tuple] = []


def measure(bench: Bench, name: str, batch: int) -> None:
    """Decoding on CPU workers and on the GPU; the tower in float32, bfloat16, channels last, compiled; the copy."""
    import open_clip  # not there on a bare machine: the driver says so, and goes on

    network, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=None, device=bench.device)
    files = jpegs(64)
    if name == SHAPES[0][0]:
        decode(bench, files, preprocess)
    pictures = torch.rand(batch, 3, 224, 224)
    pinned, there = pictures.pin_memory() if bench.gpu else pictures, pictures.to(bench.device)
    network = network.eval().requires_grad_(False)
    shape = {"model": name, "batch": batch}

    @torch.inference_mode()
    def tower(images: Tensor, dtype: torch.dtype = torch.bfloat16, model=network.encode_image) -> Tensor:
        with torch.autocast(bench.device, dtype, enabled=dtype != torch.float32):
            return model(images)

    last = there.to(memory_format=torch.channels_last)
    variants = {
        "float32": lambda: lambda: tower(there, torch.float32),
        "bfloat16": lambda: lambda: tower(there),
        "bfloat16, channels last": lambda: lambda: tower(last),
        "bfloat16, compiled": lambda: compiled(bench, tower, network, there),
        "bfloat16, from pinned memory": lambda: lambda: tower(pinned.to(bench.device, non_blocking=True)).float().cpu(),
        "bfloat16, from pageable memory": lambda: lambda: tower(pictures.to(bench.device)).float().cpu(),
    }
    bench.compare("image tower", shape, variants, flop=0, moved=pictures.numel() * 4)
    for row in bench.rows:
        if row.op == "image tower" and row.shape.startswith(f"model={name} "):
            bench.write(
                {"op": row.op, "shape": row.shape, "variant": row.variant, "images_per_s": 1e3 * batch / row.ms}
            )


def compiled(bench: Bench, tower, network, images: Tensor):
    """The tower compiled for this batch."""
    fast = bench.compiled(network.encode_image)
    return lambda: tower(images, model=fast)


def jpegs(count: int) -> list[bytes]:
    """Photograph-like JPEGs of 500 x 375."""
    from PIL import Image

    generator, files = torch.Generator().manual_seed(0), []
    for _ in range(count):
        coarse = torch.rand(1, 3, 24, 32, generator=generator)
        pixels = torch.nn.functional.interpolate(coarse, (375, 500), mode="bicubic").clamp(0, 1)[0]
        buffer = io.BytesIO()
        Image.fromarray((pixels * 255).byte().permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def open_one(work: tuple[bytes, Callable[..., Tensor]]) -> int:
    """Decode and preprocess one picture in a worker."""
    from PIL import Image

    data, preprocess = work
    return len(preprocess(Image.open(io.BytesIO(data)).convert("RGB")))


def decode(bench: Bench, files: list[bytes], preprocess) -> None:
    """Images per second of one worker, of all, and of the GPU's decoder."""
    work = [(data, preprocess) for data in files]
    start = time.perf_counter()
    for each in work:
        open_one(each)
    found = {"one CPU worker": len(work) / (time.perf_counter() - start)}
    workers = min(16, os.cpu_count() or 1)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork" if not bench.gpu else "spawn")) as pool:
        list(pool.map(open_one, work[:workers]))
        start = time.perf_counter()
        list(pool.map(open_one, work * 8, chunksize=16))
        found[f"{workers} CPU workers"] = 8 * len(work) / (time.perf_counter() - start)
    if bench.gpu:
        from torchvision.io import decode_jpeg

        raw = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]
        try:
            decode_jpeg(raw, device="cuda")
            bench.wait()
            start = time.perf_counter()
            for _ in range(8):
                decode_jpeg(raw, device="cuda")
            bench.wait()
            found["GPU, torchvision"] = 8 * len(raw) / (time.perf_counter() - start)
        except RuntimeError as error:
            print("GPU decoding:", str(error)[:160])
    for variant, speed in found.items():
        print(f"decoding | 500 x 375 JPEG | {variant} | {speed:.0f} images/s", flush=True)
        bench.write({"op": "decoding", "shape": "500 x 375 JPEG", "variant": variant, "images_per_s": speed})
