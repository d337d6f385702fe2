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

from cbm.kernels.backend import LAUNCH
from cbm.kernels.gpu import elementwise, interventions, moments, scores, topk

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
    return isinstance(value, str) and (
        value[0] == "*" or value in ("i32", "i64", "fp32") or value.startswith("tensordesc")
    )


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], capture_output=True, text=True, check=True).stdout


def launched(entry: str, dtype: str, slots: int = 16) -> tuple[Any, dict[str, Any]]:
    """The kernel of an entry of LAUNCH, and its arguments with every option on."""
    tile, kind = LAUNCH[entry], entry.split(",")[0]
    described, stored = "described" in entry, "stored" in entry
    common = {
        "X": f"tensordesc<{dtype}[{tile.rows}, {tile.dims}]>" if described else "*fp32" if stored else f"*{dtype}",
        "T": f"tensordesc<{dtype}[{tile.concepts}, {tile.dims}]>" if described else f"*{dtype}",
        "INVERSE": "*fp32", "ALPHA": "*fp32", "BETA": "*fp32", "N": "i32", "K": "i32", "D": "i32",
        "HAS_INVERSE": True, "HAS_ALPHA": True, "HAS_BETA": True, "BM": tile.rows, "BK": tile.concepts,
        "BD": tile.dims, "WIDE": False,
    }  # fmt: skip
    if kind != "scores":
        return topk.topk_kernel, common | {
            "ROW_IDS": "*i64", "KEYS": "*i64", "LSE": "*fp32", "x_stride": "i32", "t_stride": "i32", "first": "i32",
            "per": "i32", "k": "i32", "seed": "i64", "stream": "i64", "inverse_tau": "fp32",
            "SAMPLE": kind == "sampled", "FROM": 1 if described else 2 if stored else 0, "SLOTS": slots,
        }  # fmt: skip
    if described:
        return scores.described_scores_kernel, common | {
            "OUT": f"tensordesc<{dtype}[{tile.rows}, {tile.concepts // 2}]>", "ACTIVATION": 1, "GROUP": 8,
            "PROGRAMS": 132,
        }  # fmt: skip
    return scores.scores_kernel, common | {
        "OUT": f"*{dtype}", "x_stride": "i32", "t_stride": "i32", "ACTIVATION": 1, "GROUP": 8
    }  # fmt: skip


SMALL_KERNELS = {
    "activate": (elementwise.activate_kernel, {
        "SCORES": "*fp32", "INVERSE": "*fp32", "ALPHA": "*fp32", "BETA": "*fp32", "OUT": "*bf16", "K": "i32",
        "HAS_INVERSE": True, "HAS_ALPHA": True, "HAS_BETA": True, "ACTIVATION": 1, "BLOCK": 1024,
    }),
    "slope": (elementwise.slope_kernel, {
        "UPSTREAM": "*bf16", "A": "*bf16", "INVERSE": "*fp32", "OUT": "*bf16", "D_BETA": "*fp32", "penalty": "fp32",
        "N": "i32", "K": "i32", "HAS_INVERSE": True, "NEED_BETA": True, "ACTIVATION": 4, "BM": 32, "BK": 64,
    }),
    "cross_entropy": (elementwise.cross_entropy_kernel, {
        "LOGITS": "*fp32", "Y": "*i64", "GRADIENT": "*bf16", "LOSS": "*fp32", "RIGHT": "*fp32", "C": "i32",
        "width": "i32", "smoothing": "fp32", "BLOCK": 1024,
    }),
    "centre": (moments.centre_kernel, {
        "X": "*bf16", "NEAR": "*bf16", "OUT": "*bf16", "TOTAL": "*fp32", "SHIFT": "*fp32", "N": "i32", "D": "i32",
        "x_stride": "i32", "ROWS": 256, "STEP": 32, "BD": 128,
    }),
    "adam": (elementwise.adam_kernel, {
        "GRADIENT": "*fp32", "LOGITS": "*fp32", "MEAN": "*fp32", "SQUARE": "*fp32", "LSE": "*fp32", "LEVEL": "*fp32",
        "K": "i32", "gradient_stride": "i32", "stride": "i32", "rate": "fp32", "root": "fp32", "keep1": "fp32",
        "new1": "fp32", "keep2": "fp32", "new2": "fp32", "eps": "fp32", "BLOCK": 1024,
    }),
    "noise": (elementwise.noise_kernel, {
        "ROW_IDS": "*i64", "OUT": "*fp32", "seed": "i64", "stream": "i64", "K": "i32", "BLOCK": 1024,
    }),
    "unpack": (topk.unpack_kernel, {
        "KEYS": "*i64", "VALUES": "*fp32", "INDICES": "*i64", "N": "i32", "k": "i32", "stride": "i32", "BM": 32,
        "SLOTS": 16,
    }),
    "gumbel_softmax": (elementwise.gumbel_softmax_kernel, {
        "SCORES": "*fp32", "ROW_IDS": "*i64", "INVERSE": "*fp32", "ALPHA": "*fp32", "BETA": "*fp32", "LSE": "*fp32",
        "OUT": "*fp32", "seed": "i64", "stream": "i64", "inverse_tau": "fp32", "K": "i32", "HAS_INVERSE": True,
        "HAS_ALPHA": True, "HAS_BETA": True, "BLOCK": 1024,
    }),
    "intervene": (interventions.intervene_kernel, {
        "LOGITS": "*fp32", "ORDER": "*i64", "CHANGE": "*fp32", "VOTES": "*bf16", "Y": "*i64", "RIGHT": "*i8",
        "TARGET": "*fp32", "N": "i32", "M": "i32", "K": "i32", "C": "i32", "WANT_TARGET": True, "BC": 1024,
    }),
}  # fmt: skip


def table() -> None:
    """Print what every kernel compiles to."""
    for architecture in (90, 80):
        for entry, tile in LAUNCH.items():
            if "described" in entry and architecture < 90:
                continue
            label = f"{entry} {tile.rows}x{tile.concepts}x{tile.dims} w{tile.warps} s{tile.stages}"
            try:
                compiled = compile_kernel(*launched(entry, "bf16"), architecture, tile.warps, tile.stages)
                print(f"{label:44s} sm_{architecture} spills {compiled.spills}", compiled, flush=True)
            except Exception as error:
                print(f"{label:44s} sm_{architecture} FAILED {type(error).__name__} {str(error)[:200]}", flush=True)
        for name, (kernel, arguments) in SMALL_KERNELS.items():
            print(f"{name:44s} sm_{architecture}", compile_kernel(kernel, arguments, architecture, 4, 3), flush=True)


if __name__ == "__main__":
    print("triton", triton.__version__)
    table()
