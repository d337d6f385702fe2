"""What torch can compute on here."""

from typing import Any

import torch


def describe_devices() -> dict[str, Any]:
    """The processor's threads, the GPUs or why there are none, Apple's GPU, and what ``device=auto`` takes."""
    gpus, why = cuda_devices()
    return {
        "auto": "cuda" if gpus else "cpu",
        "threads": torch.get_num_threads(),
        "cuda": gpus,
        "no_cuda": why,
        "mps": bool(torch.backends.mps.is_available()),
    }


def cuda_devices() -> tuple[list[dict[str, Any]], str | None]:
    """Name, capability, memory and driver of every CUDA device; without one, why there is none."""
    if torch.version.cuda is None:
        kind = f"for ROCm {torch.version.hip}" if torch.version.hip else "without CUDA"
        return [], f"this torch ({torch.__version__}) is built {kind}"
    try:
        torch.cuda.init()
        count = torch.cuda.device_count()
        found = [torch.cuda.get_device_properties(number) for number in range(count)]
    except (RuntimeError, AssertionError) as error:
        return [], str(error).strip().splitlines()[0]
    if not found:
        return [], "no device is visible (CUDA_VISIBLE_DEVICES may hide it)"
    driver = _driver()
    return [
        {
            "name": each.name,
            "capability": f"{each.major}.{each.minor}",
            "memory": each.total_memory,
            "driver": driver,
            "runtime": torch.version.cuda,
        }
        for each in found
    ], None


def _driver() -> str | None:
    """The CUDA version up to which the driver goes; None if torch does not say."""
    try:
        number = getattr(torch._C, "_cuda_getDriverVersion")()  # noqa: B009 - only where torch knows CUDA
    except (AttributeError, RuntimeError):
        return None
    return f"{number // 1000}.{number % 1000 // 10}"
