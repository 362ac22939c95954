"""The device and the precision of a model: what `auto` chooses, and how fast matrix products are here."""

import time
from dataclasses import dataclass
from typing import Literal

import torch

from treeward.errors import UserError
from treeward.trees.forward import Precision

PrecisionOption = Literal["auto", "fp32", "bf16"]
DeviceOption = Literal["auto", "cpu", "cuda", "mps"]
SMALL = 10_000_000
"""Models below this many parameters run in fp32 under `auto`, because casts cost more than bf16 saves."""


def choose_device(option: DeviceOption) -> torch.device:
    """The device of an option; for `auto` the first available of cuda, mps and cpu.

    Raises:
        UserError: this machine does not have the device.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if option == "auto":
        option = "cuda" if available["cuda"] else "mps" if available["mps"] else "cpu"
    if not available[option]:
        raise UserError(f"model.device is {option!r}, which this machine does not have; use auto or cpu")
    return torch.device(option)


def native_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 natively: CUDA 8.0 and later, AVX512-BF16, AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("amx_tile"))
    return False


def choose_precision(option: PrecisionOption, device: torch.device, parameters: int) -> Precision:
    """The precision of an option; for `auto` bf16 products where the hardware has them and the model is large enough.

    Raises:
        UserError: the option is bf16 and the device is MPS.
    """
    if option == "bf16" and device.type == "mps":
        raise UserError("model.precision is 'bf16', but MPS runs fp32; use auto or fp32")
    if option != "auto":
        return option
    return "bf16" if parameters >= SMALL and native_bf16(device) else "fp32"


@dataclass(frozen=True)
class ProductSpeed:
    """Measured speed of matrix products, in 1e9 operations a second, and the largest relative error of bf16."""

    fp32: float
    bf16: float
    error: float


def measure_products(device: torch.device, size: int = 1024, repeats: int = 5) -> ProductSpeed:
    """Time the product of two square matrices in fp32 and in bf16 on this device, and compare the results."""
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
