"""What the Triton kernels compile to for GPUs that need not be there: no crash, shared memory, spills, tensor cores."""

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from compiled_kernels import SHARED_MEMORY, SMALL_KERNELS, compile_kernel, launched

from cbm.kernels.backend import LAUNCH
from cbm.kernels.gpu.tiles import WIDE

pytestmark = pytest.mark.skipif(WIDE, reason="the interpreter is on: nothing is compiled")
SPILLS = 48
"""Loads and stores of registers in a whole kernel, outside the loops. Triton 3.6: 40 of "scores" for sm_80, 24 and 15
of "topk" for sm_90 and sm_80. Triton 3.9: 6 of "topk" for sm_80. Nothing else."""
ENTRIES = [(entry, 16) for entry in LAUNCH]
ENTRIES += [("topk", 1), ("topk, described", 1)]


@pytest.mark.parametrize("architecture", sorted(SHARED_MEMORY))
@pytest.mark.parametrize(("entry", "slots"), ENTRIES)
def test_shipped_tiles_fit(entry, slots, architecture):
    if "described" in entry and architecture < 90:
        pytest.skip("tensor descriptors are used from sm_90 on")
    tile = LAUNCH[entry]
    compiled = compile_kernel(*launched(entry, "bf16", slots), architecture, tile.warps, tile.stages)
    assert compiled.shared <= SHARED_MEMORY[architecture]
    assert compiled.spills <= SPILLS
    if "stored" in entry:
        return
    if "described" not in entry:
        assert compiled.instructions["LDGSTS"] > 0  # loads are pipelined
    cores = {80: "HMMA", 90: "HGMMA"}[architecture]
    assert compiled.instructions[cores] > 0


@pytest.mark.parametrize("architecture", sorted(SHARED_MEMORY))
@pytest.mark.parametrize("name", SMALL_KERNELS)
def test_small_kernels_do_not_spill(name, architecture):
    kernel, arguments = SMALL_KERNELS[name]
    assert compile_kernel(kernel, arguments, architecture, 4, 3).spills == 0
