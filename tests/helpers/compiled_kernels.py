"""Compile the Triton kernels for a GPU that is not there, and read what the compiler made of them."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cbm.kernels.backend import LAUNCH, Launch
from cbm.kernels.gpu import association, bottleneck, elementwise, interventions, scores, topk

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SHARED_MEMORY = {80: 163 * 1024, 90: 227 * 1024}  # bytes that a block may have


@dataclass
class Compiled:
    """Shared memory in bytes; registers of a thread; how often an instruction occurs."""

    shared: int
    registers: int
    instructions: dict[str, int]

    @property
    def spills(self) -> int:
        """Loads and stores of registers that did not fit."""
        return self.instructions["LDL"] + self.instructions["STL"]


def compile_kernel(kernel: Any, arguments: dict[str, Any], architecture: int, warps: int, stages: int) -> Compiled:
    """Arguments: a Triton type such as '*bf16' or 'i32', or the value of a constant."""
    names = kernel.arg_names
    assert set(arguments) == set(names), set(arguments) ^ set(names)
    types = {n: arguments[n] if _is_type(arguments[n]) else "constexpr" for n in names}
    constants = {n: v for n, v in arguments.items() if not _is_type(v)}
    divisible = [i for i, n in enumerate(names) if types[n].startswith("*") or n in ("D", "x_stride", "t_stride")]
    source = ASTSource(
        fn=kernel, signature=types, constexprs=constants, attrs={(i,): [["tt.divisibility", 16]] for i in divisible}
    )
    result = triton.compile(
        source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": warps, "num_stages": stages}
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(result.asm["cubin"])
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        code = _run("nvdisasm", "-c", file.name)
    counts = {name: len(re.findall(rf"\b{name}", code)) for name in ("HGMMA", "HMMA", "FFMA", "LDL", "STL", "LDGSTS")}
    registers = re.search(r"REG:(\d+)", usage)
    assert registers, usage
    return Compiled(result.metadata.shared, int(registers[1]), counts)


def _is_type(value: Any) -> bool:
    return isinstance(value, str) and (value[0] == "*" or value in ("i32", "i64", "fp32"))


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


def launched(kernel: str, single: bool, classes: int, tile: Launch) -> tuple[Any, dict[str, Any]]:
    """The kernel of an entry of LAUNCH, and its arguments with every option on."""
    dtype = "*fp32" if single else "*bf16"
    tiles = {"BM": tile.rows, "BK": tile.concepts, "BD": tile.dims}
    common = {
        "X": dtype, "INVERSE": "*fp32", "T": dtype, "ALPHA": "*fp32", "BETA": "*fp32", "N": "i32", "K": "i32",
        "D": "i32", "x_stride": "i32", "t_stride": "i32", "HAS_INVERSE": True, "HAS_ALPHA": True, "HAS_BETA": True,
        **tiles, "PRECISION": "ieee", "WIDE": False,
    }  # fmt: skip
    if kernel == "adam":
        shared = {name: common[name] for name in ("X", "T", "N", "K", "D", "x_stride", "t_stride", *tiles)}
        return association.adam_kernel, shared | {
            "LOGITS": "*fp32", "MEAN": "*fp32", "SQUARE": "*fp32", "LSE": "*fp32", "LEVEL": "*fp32", "w_stride": "i32",
            "rate": "fp32", "root": "fp32", "beta1": "fp32", "beta2": "fp32", "eps": "fp32", "PRECISION": "ieee",
            "WIDE": False,
        }  # fmt: skip
    if kernel == "scores":
        return scores.scores_kernel, common | {
            "ROWS": "*i64", "OUT": "*fp32", "HAS_ROWS": True, "ACTIVATION": 1, "GROUP": 8
        }  # fmt: skip
    if kernel in ("topk", "sampled"):
        return topk.topk_kernel, common | {
            "ROW_IDS": "*i64", "KEYS": "*i64", "LSE": "*fp32", "per": "i32", "k": "i32", "seed": "i64",
            "stream": "i32", "inverse_tau": "fp32", "SAMPLE": kernel == "sampled", "SLOTS": 16,
        }  # fmt: skip
    head = {"W": dtype, "C": "i32", "per": "i32", "ACTIVATION": 1, "BC": classes}
    if kernel == "logits":
        return bottleneck.logits_kernel, common | head | {"PARTS": "*fp32"}
    gradients = {"G": dtype, "D_W": "*fp32", "D_ALPHA": "*fp32", "D_BETA": "*fp32", "NEED_AFFINE": True}
    return bottleneck.gradients_kernel, common | head | gradients


SMALL_KERNELS = {
    "activate": (elementwise.activate_kernel, {
        "SCORES": "*fp32", "INVERSE": "*fp32", "ALPHA": "*fp32", "BETA": "*fp32", "OUT": "*bf16", "K": "i32",
        "HAS_INVERSE": True, "HAS_ALPHA": True, "HAS_BETA": True, "ACTIVATION": 1, "BLOCK": 1024,
    }),
    "slope": (elementwise.slope_kernel, {
        "UPSTREAM": "*fp32", "A": "*bf16", "SCORES": "*fp32", "INVERSE": "*fp32", "OUT": "*bf16", "D_ALPHA": "*fp32",
        "D_BETA": "*fp32", "penalty": "fp32", "N": "i32", "K": "i32", "HAS_INVERSE": True, "NEED_ALPHA": True,
        "NEED_BETA": True, "ACTIVATION": 4, "BM": 32, "BK": 64,
    }),
    "cross_entropy": (elementwise.cross_entropy_kernel, {
        "LOGITS": "*fp32", "Y": "*i64", "GRADIENT": "*bf16", "LOSS": "*fp32", "RIGHT": "*fp32", "C": "i32",
        "weight": "fp32", "smoothing": "fp32", "BLOCK": 1024,
    }),
    "gumbel_softmax": (elementwise.gumbel_softmax_kernel, {
        "SCORES": "*fp32", "ROW_IDS": "*i64", "INVERSE": "*fp32", "ALPHA": "*fp32", "BETA": "*fp32", "LSE": "*fp32",
        "OUT": "*fp32", "seed": "i64", "stream": "i32", "inverse_tau": "fp32", "K": "i32", "HAS_INVERSE": True,
        "HAS_ALPHA": True, "HAS_BETA": True, "BLOCK": 1024,
    }),
    "intervene": (interventions.intervene_kernel, {
        "LOGITS": "*fp32", "ORDER": "*i64", "CHANGE": "*fp32", "VOTES": "*bf16", "Y": "*i64", "RIGHT": "*i8",
        "TARGET": "*fp32", "N": "i32", "M": "i32", "C": "i32", "WANT_TARGET": True, "BC": 1024,
    }),
}  # fmt: skip


def table() -> None:
    """Print what every kernel compiles to."""
    for architecture in (90, 80):
        for (name, single, classes), tile in LAUNCH.items():
            kernel, arguments = launched(name, single, classes, tile)
            label = f"{name} {'fp32' if single else 'bf16'} C{classes} {tile.rows}x{tile.concepts}x{tile.dims}"
            try:
                print(
                    f"{label:36s} sm_{architecture}",
                    compile_kernel(kernel, arguments, architecture, tile.warps, tile.stages),
                    flush=True,
                )
            except Exception as error:
                print(f"{label:36s} sm_{architecture} FAILED {type(error).__name__} {str(error)[:200]}", flush=True)
        for name, (kernel, arguments) in SMALL_KERNELS.items():
            print(f"{name:36s} sm_{architecture}", compile_kernel(kernel, arguments, architecture, 4, 3), flush=True)


if __name__ == "__main__":
    print("triton", triton.__version__)
    table()
