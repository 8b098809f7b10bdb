"""Where the host computes what is learned: on which torch device, and in which number format.

One choice a process; without one, the CPU in float32. Models alone lie on an accelerator: they take
what they are given there, and what others see of them (states, activations, bytes) is float32 in
the CPU's memory again, whatever the choice. So nothing else has to know of it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch import Tensor, nn

    Module = TypeVar("Module", bound=nn.Module)

HOSTS = ("cpu", "cuda", "mps")
PRECISIONS = ("float32", "bfloat16", "int8")
_CPU_ROWS, _CPU_STEP, _CPU_TEXTS = 16, 4, 128
_STEP, _TEXTS = 8, 4096
_MOST_TOKENS = 1 << 17  # of a batch: more fills no card better
_NUMBERS_A_GB = 1_600_000  # of a batch's hidden states: 65,536 tokens of width 2048 on 85 GB
_MPS_GB = 8
_LEAST_SIDE_NETWORK = 1_000_000  # numbers: a step of a smaller one is over before it is launched


class HostDeviceError(ValueError):
    """The host has no such device; the message says what to choose instead."""


@dataclass(frozen=True)
class HostDevice:
    """A torch device by its name, and the number format of matrix products on it.

    In `bfloat16` a frozen backbone reads with weights of that format, and a trained one keeps
    float32 weights, with bfloat16 in its products (torch's autocast). In `int8` the linear maps of
    a frozen backbone have the weights that a device which holds them so has, and all is computed in
    float32. Raises HostDeviceError for a name or precision that is unknown; whether the device is
    there is seen by `compute_on`.
    """

    name: str = "cpu"
    precision: str = "float32"

    def __post_init__(self) -> None:
        for option, chosen, known in (
            ("--host", self.name, HOSTS),
            ("--precision", self.precision, PRECISIONS),
        ):
            if chosen not in known:
                raise HostDeviceError(f"{option} is one of {', '.join(known)} (got {chosen!r})")

    @property
    def is_plain(self) -> bool:
        """Whether this is the CPU in float32."""
        return self == CPU

    @property
    def stacks(self) -> bool:
        """Whether devices that train at the same time are computed as one: on a card, which one
        device's small batch leaves idle between kernels (docs/performance.md).
        """
        return self.name == "cuda"

    @property
    def memory_bytes(self) -> float:
        """What the device's memory holds; infinite for a CPU, which is not asked."""
        return math.inf if self.name == "cpu" else self._memory_gb() * 1e9

    def place(self, model: Module) -> Module:
        """The model on this device, its numbers as they are."""
        return model.to(self.name)

    def place_frozen(self, model: Module) -> Module:
        """The model on this device, its weights in this precision; tables of positions stay."""
        if self.precision == "bfloat16":
            for parameter in model.parameters():
                parameter.data = parameter.data.bfloat16()
        elif self.precision == "int8":
            _round_to_int8(model)
        return self.place(model)

    def place_side_network(self, network: Module) -> Module:
        """A side network on this device, if it is large enough to gain by that and the device has
        the float64 of its running statistics.
        """
        numbers = sum(parameter.numel() for parameter in network.parameters())
        is_better_here = self.name == "mps" or numbers < _LEAST_SIDE_NETWORK
        return network if is_better_here else self.place(network)

    def products(self) -> Any:
        """A context in which the matrix products of training are of this precision."""
        if self.precision != "bfloat16":
            return nullcontext()
        import torch

        return torch.autocast(self.name, torch.bfloat16)

    def rows(self, length: int, width: int) -> int:
        """How many texts of a length go at once through a frozen backbone of a width.

        Fixed for a device, so that a text always has the same bits: 16 on a CPU, whose caches they
        fill; on an accelerator as many as keep it busy and its memory holds.
        """
        if self.name == "cpu":
            return _CPU_ROWS
        held = int(_NUMBERS_A_GB * self._memory_gb() / width)
        tokens = min(_MOST_TOKENS, 1 << max(1, held).bit_length() - 1)  # a power of two
        return max(_CPU_ROWS, tokens // length)

    @property
    def length_step(self) -> int:
        """Short texts are padded to multiples of so many tokens (`batches.padded`)."""
        return _CPU_STEP if self.name == "cpu" else _STEP

    @property
    def texts(self) -> int:
        """How many texts make one piece of work for a frozen backbone."""
        return _CPU_TEXTS if self.name == "cpu" else _TEXTS

    def fetch(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Begin to copy a result into the CPU's memory; gives what waits for it."""
        if self.name != "cuda":
            here = tensor.cpu()
            return lambda: here
        import torch

        copy, copied = tensor.to("cpu", non_blocking=True), torch.cuda.Event()
        copied.record()

        def fetched() -> Tensor:
            copied.synchronize()
            return copy

        return fetched

    def _memory_gb(self) -> float:
        if self.name == "mps":
            return _MPS_GB
        import torch

        return torch.cuda.get_device_properties("cuda").total_memory / 1e9

    def describe(self) -> str:
        """The device's own name and the precision, e.g. `cuda (NVIDIA A100, CUDA 12.4),
        float32`.
        """
        what = self.name
        if self.name == "cuda":
            import torch

            what += f" ({torch.cuda.get_device_name()}, CUDA {torch.version.cuda})"
        return f"{what}, {self.precision}"

    def is_that_of(self, described: str) -> bool:
        """Whether a description (`describe`) is of this device and precision, whatever the card."""
        what, _, precision = described.rpartition(", ")
        return (what.partition(" ")[0], precision) == (self.name, self.precision)


def _round_to_int8(model: nn.Module) -> None:
    """What makes one number of a linear map's output goes to whole 1/127 of its largest weight."""
    from learning.backbones.layers import linear_maps

    for weight, inputs in linear_maps(model):
        step = weight.data.abs().amax(dim=inputs, keepdim=True).clamp_min(1e-30) / 127
        weight.data = (weight.data / step).round() * step


CPU = HostDevice()
_chosen = CPU
_process = 0


def host_device() -> HostDevice:
    """The device that was chosen for this process."""
    return _chosen


def take_turns(process: int) -> None:
    """Of several cards of a machine, its `process`th process computes on the one whose turn it is;
    a process that takes no part computes on the first.
    """
    global _process
    _process = process


def compute_on(host: HostDevice) -> None:
    """Choose the device of every model that is made from now on; HostDeviceError where torch does
    not see it here.
    """
    global _chosen
    if host.name == "cuda":
        _set_up_cuda()
    elif host.name == "mps":
        _require_mps()
    _chosen = host


def _set_up_cuda() -> None:
    # cuBLAS reads it when it begins, and without it may sum in another order each time
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    if not torch.cuda.is_available():
        raise HostDeviceError(
            f"--host cuda: torch {torch.__version__} sees no CUDA device here; install a CUDA "
            "build of torch and a driver, or choose --host cpu"
        )
    # what is placed on "cuda" goes to this card
    torch.cuda.set_device(_process % torch.cuda.device_count())


def _require_mps() -> None:
    import torch

    if not torch.backends.mps.is_available():
        raise HostDeviceError(
            f"--host mps: torch {torch.__version__} sees no Apple GPU here; choose --host cpu"
        )
