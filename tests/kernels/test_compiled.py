"""What the Triton kernels compile to for GPUs that need not be there: no crash, shared memory, spills, tensor cores."""

import pytest

pytest.importorskip("triton", reason="triton is not installed")

from compiled_kernels import SHARED_MEMORY, SMALL_KERNELS, compile_kernel, launched

from cbm.kernels.backend import LAUNCH, MOST_CLASSES, launch
from cbm.kernels.gpu.tiles import WIDE

pytestmark = pytest.mark.skipif(WIDE, reason="the interpreter is on: nothing is compiled")
SPILLS = 64  # loads and stores of registers in a whole kernel, most of them outside the loops


@pytest.mark.parametrize("architecture", sorted(SHARED_MEMORY))
@pytest.mark.parametrize("entry", LAUNCH, ids=lambda e: f"{e[0]}-{'single' if e[1] else 'half'}-{e[2]}")
def test_shipped_tiles_fit(entry, architecture):
    name, single, classes = entry
    tile = LAUNCH[entry]
    kernel, arguments = launched(name, single, classes, tile)
    compiled = compile_kernel(kernel, arguments, architecture, tile.warps, tile.stages)
    assert compiled.shared <= SHARED_MEMORY[architecture]
    assert compiled.spills <= SPILLS
    assert compiled.instructions["LDGSTS"] > 0  # loads are pipelined
    if not single:
        cores = {80: "HMMA", 90: "HGMMA"}[architecture]
        assert compiled.instructions[cores] > 0


@pytest.mark.parametrize("architecture", sorted(SHARED_MEMORY))
@pytest.mark.parametrize("name", SMALL_KERNELS)
def test_small_kernels_do_not_spill(name, architecture):
    kernel, arguments = SMALL_KERNELS[name]
    assert compile_kernel(kernel, arguments, architecture, 4, 3).spills == 0


def test_the_table_covers_every_number_of_classes():
    import torch

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for kernel in ("logits", "gradients"):
            assert launch(kernel, dtype, MOST_CLASSES)
            with pytest.raises(ValueError, match=f"no launch parameters for {MOST_CLASSES + 1} classes"):
                launch(kernel, dtype, MOST_CLASSES + 1)
        assert launch("logits", dtype, 3) == launch("logits", dtype, 64)
