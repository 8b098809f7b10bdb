"""What an accelerator is good for: python benchmarks/gpu.py [--rehearse] [--host cuda] [--out FILE]
[--only card,forward,...]

Ten minutes at most on one card. In turn: the card's own ceilings (a plain matrix product, a copy);
frozen forwards of RoBERTa-base- and OPT-1.3B-sized backbones with random weights, as shares of the
card's peak; a LoRA round of 100 devices, one device after another and all as one computation; whole
runs of such rounds; steps of the side network; the quickstart on the CPU and on the card; and the
tests that hold the card's results to the CPU's. A part that fails is written down as such and the
next one begins. After each part all figures are in FILE, by default
benchmarks/results/gpu_<card>.json.

`--rehearse` does the same with tiny sizes on the CPU: its times mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers

import mobifleet
from learning.backbones import assets, catalogue
from learning.backbones.backbone import Backbone
from learning.backbones.tokens import Tokens
from learning.federated.local_training import LocalResult, LocalTraining, train
from learning.federated.stackable import Holding
from learning.federated.stacked import train_together
from learning.federated.trainable import TrainableClassifier
from learning.host_device import CPU, HostDevice, compute_on
from learning.side.config import SideNetworkConfig, SideShape
from learning.side.tuning import SideNetworkTrainer, Training
from sim.kernel.host import single_threaded_torch

# dense bfloat16 products on tensor cores as the makers' data sheets state them, FLOP/s
STATED_BF16 = {"H100 NVL": 835e12, "H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12}
STATED_BF16 |= {"A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12, "4090": 165e12}
TESTS = ["tests/learning/test_host_device.py", "tests/learning/test_stacked.py"]
REPOSITORY = Path(__file__).resolve().parents[1]
USERS_CACHE = assets.cache_dir()


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    gemm: int = 8192
    copy_bytes: int = 4 << 30
    backbones: tuple[str, ...] = ("roberta-base", "opt-1.3b")
    tokens: int = 128
    batches: int = 4
    rows: tuple[int, ...] = (16, 64, 256, 512)
    devices: int = 100
    at_once: tuple[int, ...] = (10, 100)
    trained: str = "roberta-base"
    texts: int = 64
    longest: int = 32
    runs: tuple[tuple[str, Any], ...] = ()
    side_steps: int = 20
    quickstart: tuple[tuple[str, Any], ...] = ()
    tests: tuple[str, ...] = (*TESTS, "tests/sim/test_on_accelerator.py")
    repeats: int = 5


SMALL_BACKBONE = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}
SMALL_BACKBONE |= {"intermediate_size": 64, "vocab_size": 3000}

TINY = Sizes(
    gemm=128,
    copy_bytes=1 << 20,
    backbones=("random-bert", "random-llama"),
    tokens=16,
    batches=2,
    rows=(16,),
    devices=3,
    at_once=(2, 3),
    trained="random-bert",
    texts=6,
    longest=8,
    runs=(
        *(("fleet.0.count", 3), ("task.train", 36), ("task.test", 8)),
        *((f"backbones.fresh.random.{size}", few) for size, few in SMALL_BACKBONE.items()),
    ),
    side_steps=3,
    quickstart=(("task.train", 90), ("task.test", 40), ("fleet.0.count", 3)),
    tests=(TESTS[1],),
    repeats=2,
)


class Bench:
    """The host that is measured, how much of everything, and the figures so far."""

    def __init__(self, host: str, sizes: Sizes) -> None:
        self.host, self.sizes, self.figures = host, sizes, {}
        self.peak = 1.0  # FLOP/s of a plain product in bfloat16, measured
        self.stated: float | None = None

    def on(self, precision: str = "float32") -> HostDevice:
        """Compute there from now on."""
        host = HostDevice(self.host, precision)
        compute_on(host)
        single_threaded_torch()
        return host

    def wait(self) -> None:
        if self.host == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Callable[[], Any], repeats: int = 0) -> float:
        """The median of a few repetitions, after one that warms up."""
        work()
        taken = [self.timed(work)[1] for _ in range(repeats or self.sizes.repeats)]
        return statistics.median(taken)

    def timed(self, work: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
        """What it gives, and how long that took, once."""
        self.wait()
        begin = time.perf_counter()
        made = work(*arguments)
        self.wait()
        return made, time.perf_counter() - begin

    def shares(self, flop_per_s: float) -> dict[str, float]:
        """A rate, and what share of the card's peak in bfloat16 it is."""
        found = {"tflop_per_s": flop_per_s / 1e12, "share_of_measured": flop_per_s / self.peak}
        return found | ({"share_of_stated": flop_per_s / self.stated} if self.stated else {})


# --- the card


def card(bench: Bench) -> dict[str, Any]:
    bench.on()
    found: dict[str, Any] = {
        "name": name_of(bench.host),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    if bench.host == "cuda":
        card = torch.cuda.get_device_properties(0)
        found |= {"memory_bytes": card.total_memory, "multiprocessors": card.multi_processor_count}
    size = bench.sizes.gemm
    for precision in ("float32", "bfloat16"):
        dtype = getattr(torch, precision)
        a, b = (torch.randn(size, size, device=bench.host).to(dtype) for _ in range(2))
        rate = 2 * size**3 / bench.seconds(lambda a=a, b=b: a @ b, 10)
        found[f"product_{precision}_tflop_per_s"] = rate / 1e12
        bench.peak = rate
    source = torch.randint(0, 255, (bench.sizes.copy_bytes,), dtype=torch.uint8, device=bench.host)
    target = torch.empty_like(source)
    copied_s = bench.seconds(lambda: target.copy_(source))
    found["copy_gb_per_s"] = 2 * bench.sizes.copy_bytes / copied_s / 1e9
    one = torch.ones((), device=bench.host)

    def launches() -> None:
        for _ in range(1000):
            one.add_(1)

    found["launch_us"] = bench.seconds(launches) * 1e3
    known = [peak for name, peak in STATED_BF16.items() if name in found["name"]]
    bench.stated = found["stated_bfloat16_flop_per_s"] = known[0] if known else None
    return found


def name_of(host: str) -> str:
    return torch.cuda.get_device_name(0) if host == "cuda" else f"{host} of {platform.machine()}"


# --- frozen forwards


def forward(bench: Bench) -> dict[str, Any]:
    found = {}
    for name in bench.sizes.backbones:
        found[name] = forwards_of(bench, random_weights(name))
        print(f"  {name}: {found[name]}", flush=True)
    return found


def random_weights(name: str) -> catalogue.BackboneSpec:
    """The architecture with weights drawn at random: what they are changes no timing."""
    spec = catalogue.find(name)
    return dataclasses.replace(spec, kind="random", config=catalogue.config_of(spec))


def forwards_of(bench: Bench, spec: catalogue.BackboneSpec) -> dict[str, Any]:
    """Of the model alone, by the rows of a batch, and of `readouts`, from token ids to vectors in
    the CPU's memory.
    """
    bench.on("float32")
    found, tokens, backbone = {}, bench.sizes.tokens, Backbone(spec)
    flop = forward_flop(spec, tokens)
    found["gflop_a_text"] = flop / 1e9
    vocabulary = int(backbone.model.config.vocab_size)
    for precision in ("float32", "bfloat16"):
        backbone.host = bench.on(precision)
        backbone.host.place_frozen(backbone.model)
        rates, is_slow = {}, precision == "float32"  # ten times as slow: less of it
        whole_batch = backbone.host.rows(tokens, backbone.hidden_size)
        for rows in bench.sizes.rows[:2] if is_slow else sorted({*bench.sizes.rows, whole_batch}):
            ids = torch.randint(5, vocabulary, (rows, tokens), device=bench.host)
            mask = torch.ones_like(ids)
            taken_s = bench.seconds(lambda ids=ids, mask=mask: backbone.states(ids, mask))
            rates[rows] = bench.shares(rows * flop / taken_s)
        texts = whole_batch * (1 if is_slow else bench.sizes.batches)
        rng = np.random.default_rng(0)
        whole = Tokens(list(rng.integers(5, vocabulary, (texts, tokens)).astype(np.int32)))
        taken_s = bench.seconds(lambda whole=whole: backbone.readouts(whole), 1 if is_slow else 3)
        found[precision] = {
            "states_by_rows": rates,
            "readouts": {"texts_per_s": texts / taken_s, **bench.shares(texts * flop / taken_s)},
        }
    if bench.host == "cuda":
        found["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        found["bfloat16"] |= fused(bench, backbone, ids, mask, flop)
    return found


def fused(
    bench: Bench, backbone: Backbone, ids: torch.Tensor, mask: torch.Tensor, flop: float
) -> dict[str, Any]:
    """What a pass's time on the card goes to, by kind of kernel, and what torch.compile makes of
    the same pass.
    """
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        backbone.states(ids, mask)
        torch.cuda.synchronize()
    kinds: dict[str, float] = {}
    for event in profiled.key_averages():
        known = (kind for kind, parts in KERNELS.items() if any(p in event.key for p in parts))
        kind = next(known, "other: " + event.key[:60])
        kinds[kind] = kinds.get(kind, 0) + event.self_device_time_total / 1e3
    largest = dict(sorted(kinds.items(), key=lambda one: -one[1])[:8])
    model, begin = backbone.model, time.perf_counter()
    with torch.inference_mode():
        compiled = torch.compile(model, dynamic=False)

        def run() -> Any:
            return compiled(input_ids=ids, attention_mask=mask, output_hidden_states=True)

        run()
        bench.wait()
        compiling_s = time.perf_counter() - begin
        taken_s = bench.seconds(run)
    rate = bench.shares(len(ids) * flop / taken_s)
    return {"kernels_ms": largest, "compiled": {"compiling_s": compiling_s, **rate}}


KERNELS = {
    "products": ("gemm", "cutlass", "nvjet", "Kernel2"),
    "attention": ("fmha", "flash", "attention"),
    "norms": ("layer_norm", "LayerNorm"),
    "elementwise": ("elementwise",),
}


def forward_flop(spec: catalogue.BackboneSpec, tokens: int) -> float:
    """Matrix products of a text's forward pass: 2 a multiply and add."""
    config = catalogue.config_of(spec)
    width, layers = catalogue.width_of(config), catalogue.depth_of(config)
    inner = config.get("intermediate_size") or config.get("ffn_dim")
    gated = 3 if config["model_type"] == "llama" else 2
    maps = 4 * width**2 + gated * width * inner
    return layers * (2.0 * tokens * maps + 4.0 * tokens**2 * width)


# --- a LoRA round


def stacked(bench: Bench) -> dict[str, Any]:
    sizes, found = bench.sizes, {}
    settings = LocalTraining(batch=max(2, sizes.texts // 2), learning_rate=1e-3, dropout=0.0)
    for precision in ("float32", "bfloat16"):
        bench.on(precision)
        model = TrainableClassifier(random_weights(sizes.trained), "lora", 2, head="dense")
        devices = round_of(sizes, model)

        def one_by_one(some: list[Holding], model: Any = model) -> list[LocalResult]:
            return [train(model, d.state, d.tokens, d.labels, settings, d.seed) for d in some]

        def together(some: list[Holding], at_once: int, model: Any = model) -> list[LocalResult]:
            groups = [some[start : start + at_once] for start in range(0, len(some), at_once)]
            return [one for group in groups for one in train_together(model, group, settings)]

        one_by_one(devices[:2])
        alone, alone_s = bench.timed(one_by_one, devices)
        here = found[precision] = {"one_by_one_s": alone_s, "steps": sum(r.steps for r in alone)}
        for at_once in sizes.at_once:
            try:
                together(devices[:at_once], at_once)
                made, taken_s = bench.timed(together, devices, at_once)
            except torch.OutOfMemoryError:
                here[f"{at_once}_at_once"] = "out of memory"
                torch.cuda.empty_cache()
                continue
            pairs = list(zip(alone, made, strict=True))
            off = [apart(devices[0].state, a, b) for a, b in pairs]
            here[f"{at_once}_at_once"] = {
                "taken_s": taken_s,
                "times_as_fast": alone_s / taken_s,
                "mean_loss_off": max(abs(a.mean_loss - b.mean_loss) for a, b in pairs),
                "update_off_median": statistics.median(off),
                "update_off_max": max(off),
            }
            print(f"  {precision}, {at_once} at once: {here[f'{at_once}_at_once']}", flush=True)
    return found


def round_of(sizes: Sizes, model: TrainableClassifier) -> list[Holding]:
    """Devices with texts of 8 (or half of the longest) to `longest` tokens."""
    rng, state = np.random.default_rng(0), model.trainable()
    devices = []
    for number in range(sizes.devices):
        lengths = rng.integers(min(8, sizes.longest // 2), sizes.longest + 1, sizes.texts)
        ids = [rng.integers(5, 2000, length).astype(np.int32) for length in lengths]
        devices.append(Holding(state, Tokens(ids), rng.integers(2, size=sizes.texts), number))
    return devices


def apart(start: Any, one: Any, other: Any) -> float:
    """How far two updates of a state lie apart, as a share of the first one's length."""
    gap = sum(float((one.state[n] - other.state[n]).square().sum()) for n in start)
    length = sum(float((one.state[n] - start[n]).square().sum()) for n in start)
    return (gap / length) ** 0.5


# --- whole runs


def rounds(bench: Bench) -> dict[str, Any]:
    """A run whose one round trains every device, with its learning's seconds, devices trained one
    after another and as one: of a classifier and of a decoder.
    """
    found: dict[str, Any] = {}
    for name in ("rounds_on_a_card", "replies_on_a_card"):
        for precision in ("float32", "bfloat16"):
            for stacks in (True, False):
                how = "as_one" if stacks else "one_by_one"
                with mock.patch.object(HostDevice, "stacks", stacks):
                    here = found[f"{name}_{precision}_{how}"] = run_of(bench, name, precision)
                print(f"  {name} {precision} {how}: {here}", flush=True)
    return found


def run_of(bench: Bench, name: str, precision: str) -> dict[str, Any]:
    file = REPOSITORY / "benchmarks" / f"{name}.yaml"
    scenario = mobifleet.load(file, dict(bench.sizes.runs))
    how = {"host": bench.host, "precision": precision, "workers": 1}
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        run = mobifleet.run(scenario, out=Path(folder) / "run", figures=False, quiet=True, **how)
        taken_s = time.perf_counter() - begin
    seconds = run.summary["host"]["seconds"]
    made = {"taken_s": taken_s, "virtual_time_s": run.summary["virtual_time_s"], "seconds": seconds}
    made |= {"final": run.summary["final"], "digest": run.summary["digest"][:16]}
    if bench.host == "cuda":
        made["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
    return made


# --- the side network


def side(bench: Bench) -> dict[str, Any]:
    """Milliseconds of a step on 32 records: of a network of twelve blocks beside two backbones of
    unlike width, and of the quickstart's, of two.
    """
    found = {}
    for name, shape in (
        ("large", SideShape(12, 768, 96, 6, {"a": 768, "b": 384})),
        ("small", SideShape(2, 384, 48, 6, {"a": 384})),
    ):
        here = found[name] = {"numbers": shape.parameters()}
        for host in dict.fromkeys((CPU, HostDevice(bench.host))):
            compute_on(host)
            trainer, records = side_network(shape)
            for network in (trainer.network, trainer.averaged):
                host.place(network)

            def run(trainer: Any = trainer, records: Any = records) -> None:
                for _ in range(bench.sizes.side_steps):
                    trainer.train(records)

            here[f"{host.name}_ms_a_step"] = bench.seconds(run, 3) / bench.sizes.side_steps * 1e3
    return found


def side_network(shape: SideShape) -> tuple[SideNetworkTrainer, list[Any]]:
    rng, records = np.random.default_rng(0), []
    trainer = SideNetworkTrainer(shape, SideNetworkConfig(), Training(), {}, seed=0)
    target = torch.from_numpy(rng.normal(0, 1, shape.classes).astype(np.float32))
    for name, width in shape.backbone_widths.items():
        values = torch.from_numpy(rng.normal(0, 1, (64, shape.vectors, width)).astype(np.float32))
        trainer.observe(name, values)
        records += [(name, v, target) for v in values[: 32 // len(shape.backbone_widths)]]
    return trainer, records


# --- the quickstart


def quickstart(bench: Bench) -> dict[str, Any]:
    scenario = mobifleet.load("quickstart", dict(bench.sizes.quickstart))
    found: dict[str, Any] = {}
    hosts = dict.fromkeys((CPU, HostDevice(bench.host), HostDevice(bench.host, "bfloat16")))
    for host in hosts:
        with tempfile.TemporaryDirectory() as folder:
            use_cache_without_activations(Path(folder))
            for state in ("cold", "warm") if host.precision == "float32" else ("cold",):
                begin = time.perf_counter()
                run = mobifleet.run(
                    scenario,
                    out=Path(folder) / state,
                    workers=1,
                    figures=False,
                    quiet=True,
                    host=host.name,
                    precision=host.precision,
                )
                taken_s = time.perf_counter() - begin
                here = found[f"{host.name}_{host.precision}_{state}"] = {
                    "taken_s": taken_s,
                    "learning_s": run.summary["host"]["seconds"]["torch"],
                    "accuracy": run.summary["final"],
                    "best": run.summary["best"],
                    "digest": run.summary["digest"][:16],
                }
                print(f"  {host.name} {host.precision} {state}: {here}", flush=True)
    os.environ["MOBIFLEET_CACHE"] = str(USERS_CACHE)
    return found


def use_cache_without_activations(folder: Path) -> None:
    """The user's cache, but for what forward passes gave."""
    for kept in USERS_CACHE.glob("*"):
        if kept.name != "activations":
            (folder / kept.name).symlink_to(kept)
    os.environ["MOBIFLEET_CACHE"] = str(folder)


# --- the tests


def tests(bench: Bench) -> dict[str, Any]:
    """How the tests that hold the card's results to the CPU's came out, file by file."""
    return {file: outcome(bench, file) for file in bench.sizes.tests}


def outcome(bench: Bench, file: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", file]
    command += ["-o", "addopts=-q --import-mode=importlib --strict-markers"]
    command += ["-n", "12"] if find_spec("xdist") and bench.host == "cuda" else []
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command += [f"--junitxml={report}"]
        try:
            done = subprocess.run(
                command, cwd=REPOSITORY, capture_output=True, text=True, timeout=240, check=False
            )
        except subprocess.TimeoutExpired as error:
            return {"failed": [f"not over after {error.timeout:.0f} s"]}
        cases = list(ET.parse(report).getroot().iter("testcase")) if report.exists() else []
    found: dict[str, Any] = {"passed": 0, "skipped": 0, "failed": []}
    for case in cases:
        kinds = {child.tag: child.get("message") or "" for child in case}
        if wrong := kinds.keys() & {"failure", "error"}:
            found["failed"].append(f"{case.get('name')}: {kinds[wrong.pop()][:300]}")
        else:
            found["skipped" if "skipped" in kinds else "passed"] += 1
    if done.returncode and not found["failed"]:
        found["failed"].append(done.stdout[-1500:] + done.stderr[-500:])
    print(f"  {file}: {found}", flush=True)
    return found


PARTS = {
    "card": card,
    "forward": forward,
    "stacked": stacked,
    "rounds": rounds,
    "side": side,
    "quickstart": quickstart,
    "tests": tests,
}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on the CPU")
    parser.add_argument("--host", default="cuda")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with a comma")
    options = parser.parse_args(arguments)
    bench = Bench("cpu", TINY) if options.rehearse else Bench(options.host, Sizes())
    bench.on()
    name = re.sub(r"\W+", "_", name_of(bench.host)).strip("_").lower()
    out = options.out or REPOSITORY / "benchmarks" / "results" / f"gpu_{name}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    for part in options.only.split(","):
        print(f"{part} ...", flush=True)
        begin = time.perf_counter()
        try:
            bench.figures[part] = PARTS[part](bench)
        except Exception as error:  # the other parts' figures are worth as much
            bench.figures[part] = {"failed": f"{type(error).__name__}: {error}"[:2000]}
        bench.figures[part]["part_took_s"] = time.perf_counter() - begin
        if bench.host == "cuda":
            torch.cuda.empty_cache()
        out.write_text(json.dumps(bench.figures, indent=1) + "\n", encoding="utf-8")
        print(f"{part}: {json.dumps(bench.figures[part])}", flush=True)
    return bench.figures


if __name__ == "__main__":
    main()
