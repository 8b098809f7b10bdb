"""What the last bits of learning depend on beside scenario and seed: the kind of processor, and the
libraries that compute.
"""

from __future__ import annotations

import functools
import os
import platform
import sys
from contextlib import suppress
from importlib.metadata import version

from learning.host_device import host_device

LIBRARIES = ("torch", "transformers", "numpy")
# variables by which torch and its libraries are told to compute otherwise than the processor could
CHOICES = (
    *(
        "ATEN_CPU_CAPABILITY",
        "ONEDNN_MAX_CPU_ISA",
        "DNNL_MAX_CPU_ISA",
        "ONEDNN_DEFAULT_FPMATH_MODE",
    ),
    *("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS"),
)


def arithmetic() -> str:
    """How numbers are computed here, e.g. `linux x86_64 AuthenticAMD AVX2, torch 2.13.0+cpu,
    transformers 5.1.0, numpy 2.4.0`, and then on which device, where it is not the CPU in float32.

    Torch chooses its kernels by what the processor is capable of (and lets variables choose), its
    matrix products also by the vendor; each choice sums in another order. Imports torch.
    """
    host = host_device()
    return _of_cpu() if host.is_plain else f"{_of_cpu()}, on {host.describe()}"


@functools.cache
def _of_cpu() -> str:
    import torch

    processor = [
        sys.platform,
        platform.machine(),
        _vendor(),
        torch.backends.cpu.get_cpu_capability(),
    ]
    choices = [f"{name}={os.environ[name]}" for name in CHOICES if name in os.environ]
    return ", ".join(
        [
            " ".join(filter(None, processor)),
            *(f"{name} {version(name)}" for name in LIBRARIES),
            *choices,
        ]
    )


def _vendor() -> str:
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        return next(
            (line.split(":")[1].strip() for line in lines if line.startswith("vendor_id")), ""
        )
    return platform.processor().split(",")[-1].strip()
