"""Plan a run before it begins: FLOP, memory, disk, and which way of computing will be chosen.

Times are lower bounds: the FLOP of a stage at the speed of a large matrix product, or its bytes at the speed of memory,
whichever takes longer. Loading, launching and small sizes are not counted; the training measured in docs/scale.md took
more than three times as long.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, fields

from cbm.data.store import IN_MEMORY
from cbm.errors import UserError, did_you_mean
from cbm.files.memory import memory_bytes
from cbm.kernels import choose_plan
from cbm.methods.discovered import DiscoveredConfig, passes_of
from cbm.methods.labo import MANY_WEIGHTS, LaBoConfig

ENCODERS = {"vit_b32": 8.7, "vit_b16": 35.0, "vit_l14": 162.0}
"""GFLOP of the image tower per image."""


@dataclass(frozen=True)
class Hardware:
    """The speed and size of a machine.

    Attributes:
        name: name of the machine.
        flops: FLOP per second of a float32 product as the kernels make it.
        half_flops: FLOP per second of a product in half precision, as encoders make it.
        bandwidth: bytes per second that memory reads and writes.
        memory: size of the memory in bytes.
        source: source of these numbers.
    """

    name: str
    flops: float
    half_flops: float
    bandwidth: float
    memory: float
    source: str


HARDWARE = {
    machine.name: machine
    for machine in (
        Hardware("a100", 19.5e12, 312e12, 2.0e12, 80e9, "data sheet"),
        Hardware("h100", 67e12, 989e12, 3.35e12, 80e9, "data sheet"),
        Hardware("h200", 67e12, 989e12, 4.8e12, 141e9, "data sheet"),
    )
}


def measure_here() -> Hardware:
    """Measure this machine's processor for a fifth of a second."""
    import torch

    def best(work, seconds: float = 0.1) -> float:
        took, began = float("inf"), time.perf_counter()
        while time.perf_counter() - began < seconds:
            start = time.perf_counter()
            work()
            took = min(took, time.perf_counter() - start)
        return took

    a, b = torch.full((2, 1024, 1024), 0.5)
    source, target = torch.full((2, 2**24), 0.5)
    flops = 2 * 1024**3 / best(lambda: a @ b)
    bandwidth = 2 * source.nbytes / best(lambda: target.copy_(source))
    here = f"here, {torch.get_num_threads()} threads"
    return Hardware(here, flops, flops, bandwidth, memory_bytes(), "measured now")


@dataclass(frozen=True)
class Job:
    """The sizes of a run with ``method=labo``, or with a dictionary of ``method=discovered``.

    Attributes:
        N: training images.
        K: concepts of the bottleneck, or units of the dictionary.
        D: dimensions of the features.
        C: classes.
        candidates: phrases that the concepts are selected from.
        shots: training images per class that are used; 0 for all.
        passes: number of passes over the training images until training stops; 0 for the method's own.
        method: ``labo`` or ``discovered``.
        k: units of an image (``discovered``).
        seeds: dictionaries that are trained side by side (``discovered``).
        encoder: name of the encoder.
        dtype: number format of the feature store.
    """

    N: int
    K: int
    D: int = 512
    C: int = 1000
    candidates: int = 0
    shots: int = 0
    passes: int = 0
    method: str = "labo"
    k: int = 16
    seeds: int = DiscoveredConfig.seeds
    encoder: str = "vit_b32"
    dtype: str = "float16"


@dataclass(frozen=True)
class Stage:
    """One line of a plan; seconds are a lower bound, memory and disk are in bytes."""

    name: str
    flop: float
    seconds: float
    memory: float
    disk: float
    how: str


def read_job(settings: list[str]) -> tuple[Job, str]:
    """Read sizes and the name of the hardware from ``N=1281167 K=50000 hardware=h200``.

    Raises:
        UserError: a size is unknown (the message names the nearest), is not a number, or is missing.
    """
    known = {field.name: field.type for field in fields(Job)}
    values: dict[str, int | str] = {}
    hardware = "here"
    for setting in settings:
        key, equals, value = setting.partition("=")
        if key == "hardware" and equals:
            hardware = value
            continue
        if key not in known or not equals:
            raise UserError(f"'{setting}': expected NAME=NUMBER, {did_you_mean(key, [*known, 'hardware'])}")
        if known[key] is str:
            values[key] = value
        elif value == "all" and key == "shots":
            values[key] = 0
        elif not value.replace("_", "").isdigit() or (int(value) < 1 and key not in ("shots", "candidates", "passes")):
            raise UserError(f"{setting}: expected a whole number, 1 or more")
        else:
            values[key] = int(value)
    for key in ("N", "K"):
        if key not in values:
            raise UserError(f"'{key}' is needed: say {key}=NUMBER ({'pictures' if key == 'N' else 'concepts'})")
    for key, choices in (
        ("encoder", ENCODERS), ("dtype", ("float16", "float32")), ("method", ("labo", "discovered")),
    ):  # fmt: skip
        if key in values and values[key] not in choices:
            raise UserError(f"{key}={values[key]}: {did_you_mean(str(values[key]), choices)}")
    if hardware != "here" and hardware not in HARDWARE:
        raise UserError(f"hardware={hardware}: {did_you_mean(hardware, ['here', *HARDWARE])}")
    return Job(**values), hardware  # type: ignore[arg-type]


HEAD_PASSES = 100
"""Passes over the codes that a path of sparse heads takes, at least."""


class Drawing:
    """A plan being drawn up for one machine."""

    def __init__(self, machine: Hardware):
        self.machine = machine

    def stage(
        self, name: str, flop: float, moved: float, memory: float, how: str, disk: float = 0.0, half: bool = False
    ) -> Stage:
        """A stage with the time that its FLOP or its bytes take, whichever is more."""
        speed = self.machine.half_flops if half else self.machine.flops
        return Stage(name, flop, max(flop / speed, moved / self.machine.bandwidth), memory, disk, how)


def plan(job: Job, machine: Hardware) -> list[Stage]:
    """The stages of a run in their order."""
    stage = Drawing(machine).stage
    n = min(job.N, job.shots * job.C) if job.shots else job.N
    d, width = job.D, 2 if job.dtype == "float16" else 4
    mapped = n * d * 4 > IN_MEMORY
    features = 0.0 if mapped else n * d * 4
    kept = f"mapped from disk in {job.dtype}" if mapped else "in memory in float32"
    begin = [
        stage(
            "encode",
            job.N * ENCODERS[job.encoder] * 1e9,
            job.N * d * width,
            0.0,
            f"{job.encoder}, once for all runs",
            job.N * d * width,
            half=True,
        ),
        stage(
            "features of the run",
            0.0,
            n * d * width,
            features,
            f"{n:,} pictures {kept}",
            n * d * width if mapped else 0.0,
        ),
    ]
    rest = _labo if job.method == "labo" else _discovered
    return begin + rest(job, n, features, width, stage)


def _labo(job: Job, n: int, features: float, width: int, stage: Callable[..., Stage]) -> list[Stage]:
    """Selection, training and evaluation of LaBo on n images."""
    k, d, c = job.K, job.D, job.C
    candidates = max(job.candidates, k)
    batch = min(n, LaBoConfig.batch_size or n)
    steps = -(-n // batch) * (job.passes or 20)
    association = choose_plan(batch, k, d, c)
    tiles = k * c >= MANY_WEIGHTS
    if association == "reassociated":
        step = 4 * d * c * (batch + k)
    else:
        step = 2 * batch * k * d + 4 * batch * k * c
    head = 12 * k * c if tiles else 28 * k * c  # weights and two moments; A, its gradient and that of W beside them
    work = 12 * batch * c + (0 if association == "reassociated" else 8 * batch * k)
    per_class = candidates // c + 1
    return [
        stage(
            "select concepts",
            2 * candidates * c * d + c * per_class**2 * d * 2,
            n * d * width,
            24 * candidates * c + 8 * per_class**2,
            f"{candidates:,} candidates by class means, greedily",
        ),
        stage("mean and deviation of scores", 2 * n * d * d + 2 * k * d * d, n * d * width, 16 * d * d, "covariance"),
        stage(
            "train the head",
            steps * step,
            steps * (24 if tiles else 60) * k * c,
            features + head + work + 4 * k * d,
            f"{steps:,} steps of {batch:,}, {association}" + (", Adam in tiles" if tiles else ""),
        ),
        stage("evaluate", 2 * d * c * (n / 25 + k), 0.0, features + 4 * n / 25 * c, "class vectors"),
    ]


def _discovered(job: Job, n: int, features: float, width: int, stage: Callable[..., Stage]) -> list[Stage]:
    """Training of the dictionaries, codes, and a sparse head on n images."""
    k, d, c, few = job.K, job.D, job.C, job.k
    batch = max(1, min(n // 8, DiscoveredConfig.batch_size))
    per_pass = -(-n // batch)
    steps = per_pass * (job.passes or passes_of(per_pass))
    mean_few = few * (1 + (DiscoveredConfig.first - 1) / 4)  # from ``first`` times as many down to few, then few
    step = 2 * batch * k * d + 8 * batch * mean_few * d  # the encoder's product; the others touch few units
    state = 2 * k * d * 4 * 4  # both matrices, their gradients and two moments
    work = 40 * batch * few * DiscoveredConfig.first
    return [
        stage(
            f"train {job.seeds} dictionaries",
            job.seeds * steps * step,
            job.seeds * steps * (60 * 2 * k * d + 8 * batch * mean_few * d),
            features + job.seeds * (state + work),
            f"{steps:,} steps of {batch:,}, {few} units an image, no images x units",
        ),
        stage("codes of all images", 2 * n * k * d, n * d * width, features + 12 * n * few, "one pass of the encoder"),
        stage(
            "solve the head",
            HEAD_PASSES * 4 * n * few * c,
            HEAD_PASSES * 12 * n * few,
            features + 12 * n * few + 16 * k * c,
            f"elastic net on {few} of {k:,} units an image, {HEAD_PASSES} passes at least",
        ),
        stage("evaluate", 2 * n / 25 * k * d, 0.0, features + 4 * n / 25 * c, "codes"),
    ]


def in_time(seconds: float) -> str:
    """Seconds as a readable time."""
    for unit, length in (("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{1e3 * seconds:.0f} ms"


def in_bytes(count: float) -> str:
    """Bytes as a readable size."""
    return "-" if not count else f"{count / 1e6:,.0f} MB" if count < 1e9 else f"{count / 1e9:,.1f} GB"
