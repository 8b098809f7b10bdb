"""Times real work on this machine: passes of packaged backbones, ceilings, steady load, joules.

The FLOP and bytes beside each timing are those that the simulator charges
(`learning.cost.forward_pass`, `learning.cost.count_training`), so that what is fitted to them
predicts what the simulator asks for.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from devices.calibration import CalibrationError
from learning.backbones import catalogue
from learning.cost.costs import FORMATS
from learning.cost.forward_pass import architecture

FORWARD = "forward"
TRAINED = ("lora", "bitfit")
CLASSES = 2  # outputs of the head in timed training steps
RAPL = Path("/sys/class/powercap")
LEAST_ROUNDS = 3
MOST_TOKENS = 2048  # of a pass; more than a phone's batch holds


@dataclass(frozen=True)
class Shape:
    """One piece of work: `forward`, or a training step (`lora`, `bitfit`), of a backbone over
    `batch` x `tokens`.
    """

    backbone: str
    work: str
    batch: int
    tokens: int
    flop: float
    bytes_moved: float

    @property
    def workload(self) -> str:
        """Its name in tables."""
        return f"{self.backbone} {self.work} {self.batch} x {self.tokens}"

    @property
    def engine(self) -> str:
        """The engine of the profile that is to predict it."""
        return engine_of(self.work)


def engine_of(work: str) -> str:
    """Forward passes are the engine `simple`, training steps `training`."""
    return "simple" if work == FORWARD else "training"


def shape_of(
    backbone: str, work: str, batch: int, tokens: int, precision: str = "float32"
) -> Shape:
    """The shape with its FLOP and bytes as the simulator charges them.

    Raises BackboneError for an unknown backbone, ValueError for another kind of work,
    CalibrationError for a precision.
    """
    if precision not in FORMATS:
        raise CalibrationError(f"precision: found {precision!r}, allowed: {', '.join(FORMATS)}")
    spec, width = catalogue.find(backbone), FORMATS[precision].weight
    if work == FORWARD:
        cost = architecture(spec).forward(batch, tokens, precision)
    else:
        from learning.cost.count_training import training_architecture

        cost = training_architecture(spec, work, CLASSES).step(
            batch, tokens, "adamw", bytes_per_number=width
        )
    return Shape(backbone, work, batch, tokens, cost.flop, cost.bytes_moved)


def grid(
    backbones: Sequence[str],
    works: Sequence[str],
    batches: Sequence[int],
    lengths: Sequence[int],
    precision: str,
) -> list[Shape]:
    """Every shape of a grid up to `MOST_TOKENS`, the smallest work first."""
    shapes = [
        shape_of(backbone, work, batch, tokens, precision)
        for backbone in backbones
        for work in works
        for batch in batches
        for tokens in lengths
        if batch * tokens <= MOST_TOKENS
    ]
    return sorted(shapes, key=lambda shape: shape.flop)


class Timed(NamedTuple):
    """Seconds of a piece of work, and the share of the processor that its threads got meanwhile (1
    on a GPU).
    """

    seconds: float
    cpu_share: float


class Bench:
    """Real backbones with untrained weights on one torch device, made once each, ready to be timed.

    `threads` sets torch's. Passes are a device's: no gradients, the output of every layer; training
    steps are those of `learning.federated.trainable.TrainableClassifier` with AdamW. One thread on
    a CPU is timed by its processor time, which other programs hardly lengthen; anything else by the
    wall clock. Raises CalibrationError where the device is not there.
    """

    def __init__(
        self,
        device: str = "cpu",
        precision: str = "float32",
        threads: int | None = None,
        seed: int = 0,
    ) -> None:
        import torch

        if device not in ("cpu", "cuda") or precision not in ("float32", "float16", "bfloat16"):
            raise CalibrationError(
                "choose --device cpu or cuda and --precision float32, bfloat16 or float16 (got "
                f"{device}, {precision})"
            )
        if device == "cuda" and not torch.cuda.is_available():
            raise CalibrationError(
                "--device cuda: torch sees no CUDA device here; install a CUDA build, or use cpu"
            )
        if threads:
            torch.set_num_threads(threads)
        self.device = device
        self.precision = precision
        self.threads = torch.get_num_threads()
        # on an idle machine the same as the clock's, on a busy one what the clock's would be
        # without the others
        self.by_processor_time = device == "cpu" and self.threads == 1
        self._rng = np.random.default_rng(seed)
        self._passes: dict[tuple[str, str], Callable[[Any], Any]] = {}

    def load(self, shapes: Sequence[Shape]) -> None:
        """Load what the shapes need, so that no timing or budget holds it."""
        for shape in shapes:
            self._prepared(shape)

    def time(self, shape: Shape) -> Timed:
        """Time one pass or step, from inputs in the device's memory to a finished result."""
        import torch

        run = self._prepared(shape)
        ids_BT = torch.from_numpy(self._rng.integers(5, 1000, (shape.batch, shape.tokens))).to(
            self.device
        )
        return self._timed(lambda: run(ids_BT))

    def _timed(self, work: Callable[[], Any]) -> Timed:
        self._synchronise()
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        work()
        self._synchronise()
        seconds = time.perf_counter() - began_s
        cpu_s = time.process_time() - began_cpu_s
        if self.device == "cuda":
            return Timed(seconds, 1.0)
        share = min(1.0, cpu_s / (seconds * self.threads))
        return Timed(cpu_s if self.by_processor_time else seconds, share)

    def _synchronise(self) -> None:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()

    def _prepared(self, shape: Shape) -> Callable[[Any], Any]:
        key = (shape.backbone, shape.work)
        if key not in self._passes:
            make = self._forward if shape.work == FORWARD else self._step
            spec = catalogue.find(shape.backbone)
            # what the weights are changes no timing: drawn at random, any known architecture can be
            # timed, fetched or not
            untrained = dataclasses.replace(
                spec, kind="random", config=catalogue.config_of(spec), layers=None
            )
            self._passes[key] = make(untrained, shape.work)
        return self._passes[key]

    def _forward(self, spec: catalogue.BackboneSpec, _: str) -> Callable[[Any], Any]:
        import torch

        from learning.backbones.backbone import Backbone

        model = Backbone(spec).model
        # transformers wraps `to` so that its types no longer know whose method it is
        model.to(self.device, getattr(torch, self.precision))  # type: ignore[arg-type]
        extra = {"use_cache": False} if hasattr(model.config, "use_cache") else {}

        def run(ids_BT: Any) -> Any:
            with torch.inference_mode():
                return model(
                    ids_BT,
                    attention_mask=torch.ones_like(ids_BT),
                    output_hidden_states=True,
                    **extra,
                )

        return run

    def _step(self, spec: catalogue.BackboneSpec, kind: str) -> Callable[[Any], Any]:
        import torch
        import torch.nn.functional as F

        from learning.federated.trainable import TrainableClassifier

        model = TrainableClassifier(spec, kind, CLASSES).to(self.device)
        optimiser = torch.optim.AdamW(model.trainable_parameters().values(), lr=1e-4)

        def run(ids_BT: Any) -> Any:
            targets_B = ids_BT[:, 0] % CLASSES
            loss = F.cross_entropy(model(ids_BT, torch.ones_like(ids_BT)), targets_B)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            return loss

        return run

    # --- ceilings

    def gemm_flop_per_s(self, size: int = 1536, repeats: int = 5) -> float:
        """The best of a few square matrix products, FLOP/s: what no pass can exceed."""
        import torch

        a, b = (
            torch.rand(size, size, device=self.device).to(getattr(torch, self.precision))
            for _ in range(2)
        )
        best_s = min(self._timed(lambda: a @ b).seconds for _ in range(repeats + 1))
        return 2 * size**3 / best_s

    def copy_bytes_per_s(self, nbytes: int = 256 << 20, repeats: int = 5) -> float:
        """The best of a few copies of a block beyond any cache, bytes read and written a second."""
        import torch

        source = torch.ones(nbytes // 4, device=self.device)
        target = torch.empty_like(source)
        best_s = min(self._timed(lambda: target.copy_(source)).seconds for _ in range(repeats + 1))
        return 2 * nbytes / best_s


def round_robin(
    bench: Bench,
    shapes: Sequence[Shape],
    rng: np.random.Generator,
    budget_s: float,
    least_rounds: int = LEAST_ROUNDS,
) -> Iterator[tuple[Shape, Timed, int, float]]:
    """(shape, timing, round, seconds since the start) of all shapes, in a fresh random order each
    round.

    So a disturbance of some seconds falls on different shapes, and the median over rounds is rid of
    it. Rounds go on for `budget_s`, and there are at least `least_rounds`.
    """
    began_s, number = time.perf_counter(), 0
    while True:
        for i in rng.permutation(len(shapes)):
            if number >= least_rounds and time.perf_counter() - began_s >= budget_s:
                return
            yield shapes[i], bench.time(shapes[i]), number, time.perf_counter() - began_s
        number += 1


def steady_load(
    bench: Bench, shape: Shape, seconds: float, least_passes: int = 30
) -> Iterator[tuple[float, Timed]]:
    """(seconds since the start, timing) of the same pass without a pause, for so long and at least
    `least_passes`.
    """
    began_s, passes = time.perf_counter(), 0
    while (at_s := time.perf_counter() - began_s) < seconds or passes < least_passes:
        yield at_s, bench.time(shape)
        passes += 1


# --- the machine
# ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Machine:
    """What this machine is: a line for people, the kind of a profile, bytes of memory, the software
    that computes.
    """

    title: str
    kind: str
    memory_bytes: int
    software: str


def this_machine(bench: Bench) -> Machine:
    """Describe the machine that a bench runs on; memory is the GPU's own on CUDA."""
    import psutil
    import torch
    import transformers

    threads = (
        "one thread, by processor time" if bench.by_processor_time else f"{bench.threads} threads"
    )
    software = f"torch {torch.__version__}, transformers {transformers.__version__}, {threads}"
    if bench.device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        return Machine(
            gpu.name, _kind(), gpu.total_memory, f"{software}, CUDA {torch.version.cuda}"
        )
    cores = psutil.cpu_count(logical=False) or os.cpu_count()
    title = f"{_cpu_name()}, {cores} cores, {platform.system()} {platform.machine()}"
    return Machine(title, _kind(), psutil.virtual_memory().total, software)


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [
        line.partition(":")[2].strip()
        for line in lines
        if line.lower().startswith(("model name", "hardware"))
    ]
    return names[0] if names else platform.processor() or platform.machine()


def _kind() -> str:
    """One of a profile's kinds: boards name themselves in the device tree, what has a battery is a
    laptop.
    """
    import psutil

    try:
        board = Path("/proc/device-tree/model").read_text(encoding="utf-8").lower()
    except OSError:
        board = ""
    if board:
        return "board" if "jetson" in board else "sbc"
    has_battery = getattr(psutil, "sensors_battery", lambda: None)() is not None
    return "laptop" if has_battery else "server"


class EnergyCounter:
    """Joules that hardware counters have added up since this object was made; `sources` is empty
    where there are none.

    RAPL (Linux, x86: the processor packages, in microjoules that wrap around) and NVML (one NVIDIA
    GPU, in millijoules, by `nvidia-ml-py` where it is installed). Neither sees the whole machine.
    """

    def __init__(self, device: str = "cpu", rapl: Path = RAPL) -> None:
        self._counters: list[
            tuple[Callable[[], float], float]
        ] = []  # (joules so far, joules at which they wrap)
        self.sources: list[str] = []
        if device == "cuda":
            self._add_nvml()
        else:
            for zone in sorted(rapl.glob("intel-rapl:*")):
                if zone.name.count(":") == 1:  # a package; its parts are counted in it
                    self._add_rapl(zone)
        self._last = [read() for read, _ in self._counters]
        self._joules = 0.0

    def _add_rapl(self, zone: Path) -> None:
        def read() -> float:
            return int((zone / "energy_uj").read_text()) / 1e6

        try:
            read()
            wraps_j = int((zone / "max_energy_range_uj").read_text()) / 1e6
            name = (zone / "name").read_text().strip()
        except (OSError, ValueError):  # many systems let only root read it
            return
        self._counters.append((read, wraps_j))
        self.sources.append(f"RAPL {name}")

    def _add_nvml(self) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
            gpu = pynvml.nvmlDeviceGetHandleByIndex(0)
            pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu)
        except (
            Exception
        ):  # not installed, no driver, or a GPU without the counter: all mean that there is none
            return
        self._counters.append(
            (lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) / 1e3, float("inf"))
        )
        self.sources.append("NVML")

    def joules(self) -> float:
        """Joules since the object was made. A counter may wrap once between two calls, so call now
        and then.
        """
        for i, (read, wraps_j) in enumerate(self._counters):
            now, before = read(), self._last[i]
            self._joules += now - before if now >= before else now + wraps_j - before
            self._last[i] = now
        return self._joules


def mean_power_w(counter: EnergyCounter, seconds: float) -> float:
    """Mean watts over so many idle seconds."""
    began_j, began_s = counter.joules(), time.perf_counter()
    time.sleep(seconds)
    return (counter.joules() - began_j) / (time.perf_counter() - began_s)
