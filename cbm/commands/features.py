"""``python -m cbm encode`` and ``plan``: images to features, and what a run will take."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cbm.commands.shared import Cache, Card, EncoderName, Json, Pretrained, Root, encoder_settings, out, read_card, show
from cbm.errors import UserError, did_you_mean
from cbm.files.console import process_rank


def add_to(app: typer.Typer) -> None:
    """Make the commands of this file part of ``python -m cbm``."""
    app.command()(encode)
    app.command()(plan)


def encode(
    dataset: Card,
    root: Root = None,
    encoder: EncoderName = "tiny_clip",
    pretrained: Pretrained = None,
    cache: Cache = Path("cache"),
    workers: Annotated[int, typer.Option(help="Processes that decode images.")] = 2,
    batch_size: Annotated[int, typer.Option(help="Images per forward pass.")] = 256,
    dtype: Annotated[str, typer.Option(help="Number format of the store: float32 | float16.")] = "float32",
    devices: Annotated[int, typer.Option(help="Processes on this machine, one per device.")] = 1,
    nodes: Annotated[int, typer.Option(help="Machines (where SLURM or torchrun starts the processes).")] = 1,
) -> None:
    """Encode all splits of a data set into the feature store (interrupted: run it again, it goes on)."""
    from cbm.data.encoded import encode_splits

    if dtype not in (known := ("float32", "float16")):
        raise UserError(f"--dtype {dtype}: {did_you_mean(dtype, known)}")
    _, images = read_card(dataset, root, cache)
    if any(split.features is not None for split in images.splits.values()):
        raise UserError(
            f"'{dataset}' has features already: there is nothing to encode (train.py dataset={dataset} ...)"
        )
    tower, settings = encoder_settings(encoder, pretrained, cache, workers, batch_size)
    settings = replace(settings, store_dtype=dtype, devices=devices, nodes=nodes)
    _, data = encode_splits(images, tower, settings, tuple(images.splits))
    for name, split in data.splits.items() if process_rank() == 0 else ():
        out.print(f"{name}: {len(split)} images, {data.dim} dimensions")


def plan(
    sizes: Annotated[
        list[str],
        typer.Argument(
            help="N=images K=concepts, D=512 C=1000 method= candidates= shots= passes= k= seeds= encoder= dtype= "
            "hardware="
        ),
    ],
    as_json: Json = False,
) -> None:
    """Say what a run (LaBo, or method=discovered with K units) will take: FLOP, least time, memory, disk."""
    from cbm.methods.planning import HARDWARE, Stage, in_bytes, in_time, measure_here, read_job
    from cbm.methods.planning import plan as stages

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
    show(table, {"machine": asdict(machine), "stages": [asdict(each) for each in found]}, as_json)
    said = (
        f"{machine.name} ({machine.source}): {machine.flops / 1e9:,.0f} GFLOP/s in float32, "
        f"{machine.bandwidth / 1e9:,.0f} GB/s, {in_bytes(machine.memory)} of memory. Without controls and re-solved "
        f"heads (controls=false nec=[]). Scores of all pictures on all concepts, {in_bytes(2 * job.N * job.K)} in half "
        "precision, are never made."
    )
    if not as_json:
        out.print(said)
    if peak > machine.memory:
        raise UserError(f"this needs {in_bytes(peak)} of memory, {machine.name} has {in_bytes(machine.memory)}")
