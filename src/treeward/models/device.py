"""Where and in which precision a model runs; chosen by rule, printed, and overridable."""

import ctypes
import sys
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch

from treeward.errors import UserError
from treeward.trees.forward import Precision

AskedPrecision = Literal["auto", "fp32", "bf16"]
AskedDevice = Literal["auto", "cpu", "cuda", "mps"]
SMALL = 10_000_000
"""Models below this many parameters run fp32 under `auto`: casting costs more than it saves."""


def choose_device(asked: AskedDevice) -> torch.device:
    """The device asked for, or the fastest there is.

    Raises:
        UserError: the device asked for is not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if asked == "auto":
        asked = "cuda" if there["cuda"] else "mps" if there["mps"] else "cpu"
    if not there[asked]:
        raise UserError(f"model.device is {asked!r}, which this machine does not have; use auto or cpu")
    return torch.device(asked)


def native_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself: CUDA 8.0 and later, AVX512-BF16, AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("amx_tile"))
    return False


def choose_precision(asked: AskedPrecision, device: torch.device, parameters: int) -> Precision:
    """fp32, or bf16 products over fp32 weights where that is native and the model is large enough.

    Raises:
        UserError: bf16 was asked for on a device without it.
    """
    if asked == "bf16" and device.type == "mps":
        raise UserError("model.precision is 'bf16', but MPS runs fp32; use auto or fp32")
    if asked != "auto":
        return asked
    return "bf16" if parameters >= SMALL and native_bf16(device) else "fp32"


@dataclass(frozen=True)
class ProductSpeed:
    """Matrix products measured here, in 1e9 operations a second, and the largest relative bf16 error seen."""

    fp32: float
    bf16: float
    error: float


def measure_products(device: torch.device, size: int = 1024, repeats: int = 5) -> ProductSpeed:
    """Time a square product in fp32 and in bf16 on this device, and compare their values."""
    a = torch.randn(size, size, device=device, generator=torch.Generator(device).manual_seed(0))
    speeds = {}
    results = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = a.to(dtype)
        results[dtype] = (x @ x).float()
        best = float("inf")
        for _ in range(repeats):
            start = time.perf_counter()
            (x @ x).sum().item()
            best = min(best, time.perf_counter() - start)
        speeds[dtype] = 2 * size**3 / best / 1e9
    exact = results[torch.float32]
    error = ((results[torch.bfloat16] - exact).abs().max() / exact.abs().max()).item()
    return ProductSpeed(speeds[torch.float32], speeds[torch.bfloat16], error)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next step instead of handing it back to the kernel.

    Every step allocates the same large tensors; mapping them anew costs a page fault for each 4 KiB (measured: 28 %
    of a GPT-2 124M step on two cores). Peak memory hardly changes. Without glibc it does nothing.
    """
    if sys.platform.startswith("linux"):
        libc: Any = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            trim_threshold, mmap_max = -1, -4
            libc.mallopt(mmap_max, 0)
            libc.mallopt(trim_threshold, 2**31 - 1)
