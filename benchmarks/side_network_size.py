"""Accuracy of a side network against the bytes that a device downloads of it:
python benchmarks/side_network_size.py [--out FILE]

Off the clock, on the vectors that Fed MobiLLM's devices upload (MiniLM, mean over tokens, float16):
the method's own trainer and defaults at several bottlenecks, and what is left of the accuracy when
the weights went to the device at each precision; all are judged on the same trained weights.
Accuracy is of validation texts, drawn from the training part; no test text is read. Bytes are those
of RoBERTa-base with twelve sampled layers and two classes.

FILE keeps what is done, so that a second call goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from learning.backbones import assets, catalogue
from learning.backbones.tokens import tokenise
from learning.data import texts
from learning.side.activation_store import ActivationStore
from learning.side.config import Precision, SideNetworkConfig, shape_for
from learning.side.delivery import delivered
from learning.side.prediction_difference import difference
from learning.side.readouts import pooled_activations
from learning.side.tuning import HeldOut, SideNetworkTrainer, Training

RESULTS = Path(__file__).parent / "results" / "side_network_size.json"
DATA = (
    "rotten-tomatoes",
    "hutto-tweets",
    "sms-spam",
    "trec-questions",
)  # the last: not to choose by
TAPS = {"l2": (0, 1, 2), "l6": tuple(range(7))}
BOTTLENECKS = (4, 8, 16, 48, 96)
TRAIN, VALIDATION, REPLAY, BATCH, MAX_TOKENS = 800, 800, 20, 32, 32
ROBERTA_BLOCKS, ROBERTA_WIDTH, ROBERTA_CLASSES = 12, 768, 2


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure what FILE lacks, and print the table."""
    parser = options(__doc__, RESULTS, DATA, TAPS, TRAIN, VALIDATION)
    parser.add_argument("--bottlenecks", nargs="+", type=int, default=BOTTLENECKS)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = begun(given)
    found["shipped_bytes"] = {
        str(r): {p: shipped_bytes(r, p) for p in get_args(Precision)} for r in given.bottlenecks
    }
    cells = found.setdefault("cells", {})
    for seed, name, taps in itertools.product(range(given.seeds), given.data, given.taps):
        todo = [r for r in given.bottlenecks if f"{name}/{taps}/{r}/{seed}" not in cells]
        if todo:
            held = given.train + given.validation
            values, labels = activations(given.backbone, name, held, seed, TAPS[taps])
        for r in todo:
            cells[f"{name}/{taps}/{r}/{seed}"] = trained(values, labels, given.train, r, seed)
            given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))
    return found


def options(
    about: str | None,
    results: Path,
    data: Sequence[str],
    taps: Iterable[str],
    train: int,
    validation: int,
) -> argparse.ArgumentParser:
    """What every study of uploaded vectors off the clock may be told, with its own defaults."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--out", type=Path, default=results)
    parser.add_argument("--data", nargs="+", default=data)
    parser.add_argument("--taps", nargs="+", default=list(taps), choices=taps)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=train)
    parser.add_argument("--validation", type=int, default=validation)
    parser.add_argument("--backbone", default="minilm")
    return parser


def begun(given: argparse.Namespace) -> dict[str, Any]:
    """What the file of results holds already, for the settings given."""
    found: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    return found | {
        "train": given.train,
        "validation": given.validation,
        "backbone": given.backbone,
    }


def shipped_bytes(bottleneck: int, precision: Precision) -> int:
    """As RoBERTa-base."""
    config = SideNetworkConfig(bottleneck=bottleneck)
    shape = shape_for(config, ROBERTA_BLOCKS, {"roberta-base": ROBERTA_WIDTH}, ROBERTA_CLASSES)
    return shape.shipped_bytes("roberta-base", precision)


def activations(
    backbone: str, name: str, count: int, seed: int, layers: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors [n, V, d] of some texts of the training part as they cross the link, and labels."""
    data, spec = texts.load(name), catalogue.find(backbone)
    pool = data.official_split[0] if data.official_split else np.arange(len(data))
    known = np.random.default_rng(0).permutation(pool)[:2000]
    chosen = np.random.default_rng(seed).permutation(known)[:count]
    tokens = tokenise(spec, [data.texts[i] for i in chosen], None, MAX_TOKENS)
    store = ActivationStore(assets.cache_dir() / "activations")
    values = pooled_activations(spec, tokens, "mean", store, itertools.starmap)
    layers = [layer for layer in layers if layer < values.vectors]
    return values.take(layers=layers).astype(np.float16).astype(np.float32), data.labels[chosen]


def trained(
    values: np.ndarray, labels: np.ndarray, train: int, bottleneck: int, seed: int
) -> dict[str, Any]:
    """Train as the server does when all records are there; accuracy by precision."""
    began, classes = time.process_time(), int(labels.max()) + 1
    config = SideNetworkConfig(bottleneck=bottleneck)
    shape = shape_for(config, values.shape[1] - 1, {"own": values.shape[2]}, classes)
    uniform = np.full((len(labels), classes), 1 / classes, np.float32)
    held = {"own": HeldOut(values[train:], uniform[train:], labels[train:])}
    trainer = SideNetworkTrainer(shape, config, Training(1e-3, 1.0), held, seed)
    vectors = torch.from_numpy(values[:train])
    targets = torch.from_numpy(difference(labels[:train], uniform[:train]))
    trainer.observe("own", vectors)
    rng = np.random.default_rng(seed)
    for _ in range(REPLAY * train // BATCH):
        drawn = rng.choice(train, BATCH, replace=False)
        trainer.train([("own", vectors[i], targets[i]) for i in drawn])
    exact, accuracy = trainer.averaged, {}
    for precision in get_args(Precision):
        trainer.averaged = delivered(exact, precision)
        accuracy[precision] = trainer.evaluate()["own"]
    return {"accuracy": accuracy, "cpu_s": round(time.process_time() - began, 2)}


def table(found: dict[str, Any]) -> str:
    """Mean over seeds of each data set and depth: a row a bottleneck and precision."""
    cells = {tuple(key.split("/")): cell for key, cell in found["cells"].items()}
    columns = list(dict.fromkeys((name, taps) for name, taps, _, _ in cells))
    lines = [
        f"| bottleneck | precision | bytes | {' | '.join(' '.join(c) for c in columns)} |",
        "|---" * (3 + len(columns)) + "|",
    ]
    for r, precision in itertools.product(found["shipped_bytes"], get_args(Precision)):
        means = [
            mean(
                cell["accuracy"][precision]
                for (*column, bottleneck, _), cell in cells.items()
                if tuple(column) == wanted and bottleneck == r
            )
            for wanted in columns
        ]
        size = f"{found['shipped_bytes'][r][precision]:,}"
        lines.append(f"| {r} | {precision} | {size} | {' | '.join(means)} |")
    return "\n".join(lines)


def mean(values: Iterable[float]) -> str:
    """Of what there is, to three places."""
    known = list(values)
    return f"{sum(known) / len(known):.3f}" if known else ""


if __name__ == "__main__":
    main()
