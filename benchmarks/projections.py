"""How backbones of unlike width should come to the side network's own:
python benchmarks/projections.py [--out FILE]

Off the clock, on the vectors that Fed MobiLLM's devices upload (mean over tokens, float16), of a
fleet that mixes depths and widths: `minilm-narrow` (128), `minilm-l4` and `minilm` (384), a third
of the texts each. The method's own trainer with its adapters alone (a ridge skip passes no
projection), at several common widths, with projections that are

    trained   one a (backbone, vector), from random rows or columns at right angles, as shipped
    shared    the same, but one a backbone for all its vectors
    fixed     one a (backbone, vector), as they were drawn
    pca       one a (backbone, vector), the principal axes of what was uploaded, not trained

where widths differ, or (`always`) everywhere. Accuracy is of validation texts, drawn from the
training part, mean over the three backbones; no test text is read.

FILE keeps what is done, so that a second call goes on.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_network_size import BATCH, REPLAY, activations, begun, mean, options
from torch import Tensor

from learning.backbones import catalogue
from learning.side.config import SideNetworkConfig, shape_for
from learning.side.prediction_difference import difference
from learning.side.taps import average_interval
from learning.side.tuning import HeldOut, SideNetworkTrainer, Training

RESULTS = Path(__file__).parent / "results" / "projections.json"
DATA = ("rotten-tomatoes", "hutto-tweets", "hutto-films", "sms-spam")
BLOCKS = {"1": 1, "2": 2}
FLEET = ("minilm-narrow", "minilm-l4", "minilm")
WIDTHS: tuple[int | str, ...] = ("median", 256, 128)
KINDS = ("trained", "shared", "fixed", "pca")
WAYS = [*itertools.product(WIDTHS, KINDS, ["where-needed"]), ("median", "trained", "always")]
TRAIN, VALIDATION = 1200, 800

Data = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""By backbone, its vectors [n, V, d_m] and labels: those to train on, then those to judge by."""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure what FILE lacks, and print the table."""
    given = options(__doc__, RESULTS, DATA, BLOCKS, TRAIN, VALIDATION).parse_args(argv)
    torch.set_num_threads(1)
    found = begun(given) | {"backbone": ", ".join(FLEET)}
    cells = found.setdefault("cells", {})
    for seed, blocks, name in itertools.product(range(given.seeds), given.taps, given.data):
        if f"{name}/{blocks}/{seed}" in cells:
            continue
        data = uploaded(name, BLOCKS[blocks], given.train, given.validation, seed)
        began = time.process_time()
        accuracy = {" ".join(map(str, way)): trained(data, given.train, way, seed) for way in WAYS}
        cpu_s = round(time.process_time() - began, 2)
        cells[f"{name}/{blocks}/{seed}"] = {"accuracy": accuracy, "cpu_s": cpu_s}
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))
    return found


def uploaded(name: str, blocks: int, train: int, validation: int, seed: int) -> Data:
    """A third of the training texts for each backbone of the fleet, and all validation texts."""
    found = {}
    for place, backbone in enumerate(FLEET):
        depth = catalogue.depth_of(catalogue.config_of(catalogue.find(backbone)))
        layers = (0, *average_interval(depth, blocks))
        values, labels = activations(backbone, name, train + validation, seed, layers)
        mine = [*range(place, train, len(FLEET)), *range(train, train + validation)]
        found[backbone] = values[mine], labels[mine]
    return found


def trained(data: Data, train: int, way: tuple[int | str, str, str], seed: int) -> float:
    """Train as the server does when all records are there; mean accuracy over the backbones."""
    width, kind, where = way
    config = SideNetworkConfig(width=width, projection=where)  # type: ignore[arg-type]
    widths = {name: values.shape[2] for name, (values, _) in data.items()}
    classes = 1 + max(int(labels.max()) for _, labels in data.values())
    vectors = next(iter(data.values()))[0].shape[1]
    records: list[tuple[str, Tensor, Tensor]] = []
    held = {}
    for place, (name, (values, labels)) in enumerate(data.items()):
        own = len(range(place, train, len(FLEET)))
        uniform = np.full((len(labels), classes), 1 / classes, np.float32)
        held[name] = HeldOut(values[own:], uniform[own:], labels[own:])
        targets = torch.from_numpy(difference(labels[:own], uniform[:own]))
        own_values = torch.from_numpy(values[:own])
        records += [(name, *record) for record in zip(own_values, targets, strict=True)]
    shape = shape_for(config, vectors - 1, widths, classes)
    trainer = SideNetworkTrainer(shape, config, Training(1e-3, 1.0), held, seed)
    for name in data:
        uploads = torch.stack([value for of, value, _ in records if of == name])
        trainer.observe(name, uploads)
        for network in (trainer.network, trainer.averaged):
            set_up(network.projection(name), kind, uploads)
    rng = np.random.default_rng(seed)
    for _ in range(REPLAY * train // BATCH):
        drawn = rng.choice(len(records), BATCH, replace=False)
        trainer.train([records[i] for i in drawn])
    found = trainer.evaluate()
    return sum(value or 0.0 for value in found.values()) / len(found)


def set_up(projection: Tensor | None, kind: str, uploads: Tensor) -> None:
    """Make a backbone's projections [V, d_m, d_s] of a kind; its uploads are [n, V, d_m]."""
    if projection is None or kind == "trained":
        return
    if kind == "shared":  # alike at the start, and moved alike
        projection.data.copy_(projection.data[:1].expand_as(projection))
        projection.register_hook(lambda g_VMD: g_VMD.sum(0, keepdim=True).expand_as(g_VMD).clone())
        return
    projection.requires_grad_(False)
    if kind == "pca":
        projection.zero_()
        deviation_VM = uploads.std(0, correction=0).clamp_min(1e-3)
        z_NVM = (uploads - uploads.mean(0)) / deviation_VM  # as the projections get them
        for v, z_NM in enumerate(z_NVM.unbind(1)):
            axes_KM = torch.linalg.svd(z_NM, full_matrices=False).Vh[: projection.shape[2]]
            projection[v, :, : len(axes_KM)] = axes_KM.T


def table(found: dict[str, Any]) -> str:
    """Mean over seeds of each data set and number of blocks: a row a way."""
    cells = {tuple(key.split("/")): cell["accuracy"] for key, cell in found["cells"].items()}
    columns = list(dict.fromkeys((name, blocks) for name, blocks, _ in cells))
    heads = [f"{name}, {blocks}" for name, blocks in columns]
    lines = [
        f"| width | projections | where | {' | '.join(heads)} | mean |",
        "|---" * (4 + len(columns)) + "|",
    ]
    for way in WAYS:
        key = " ".join(map(str, way))
        each = [
            [cell[key] for (*at, _), cell in cells.items() if tuple(at) == column]
            for column in columns
        ]
        means = [*map(mean, each), mean(itertools.chain(*each))]
        lines.append(f"| {' | '.join(map(str, way))} | {' | '.join(means)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
