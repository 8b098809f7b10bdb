"""What predicts best from the vectors that Fed MobiLLM's devices upload:
python benchmarks/readouts.py [--out FILE]

Off the clock (MiniLM, mean over tokens, float16): the method's own trainer with its adapters alone,
with its closed-form skip alone, with both by the adapters' share, and logistic regression on the
very same vectors, which needs the labels. The skip's penalty is chosen by leaving out records,
logistic regression's on every fifth record; `chosen` takes the share with the least squared error
on a tenth of the records, which the adapters it is used with have not seen. Accuracy is of
validation texts, drawn from the training part; no test text is read.

FILE keeps what is done, so that a second call goes on.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from side_network_size import BATCH, REPLAY, activations, begun, options

from learning.side.config import SideNetworkConfig, shape_for
from learning.side.delivery import delivered
from learning.side.prediction_difference import difference
from learning.side.tuning import HeldOut, SideNetworkTrainer, Training

RESULTS = Path(__file__).parent / "results" / "readouts.json"
DATA = ("rotten-tomatoes", "hutto-tweets", "hutto-amazon", "sms-spam", "trec-questions")
TAPS = {"last": (0, 6), "l2": (0, 1, 2), "all": tuple(range(7))}
SHARES = (1.0, 0.75, 0.5, 0.25, 0.1, 0.0)
TRAIN, VALIDATION = 1200, 800


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure what FILE lacks, and print the table."""
    given = options(__doc__, RESULTS, DATA, TAPS, TRAIN, VALIDATION).parse_args(argv)
    torch.set_num_threads(1)
    found = begun(given)
    cells = found.setdefault("cells", {})
    for seed, taps, name in itertools.product(range(given.seeds), given.taps, given.data):
        if f"{name}/{taps}/{seed}" in cells:
            continue
        held = given.train + given.validation
        values, labels = activations(given.backbone, name, held, seed, TAPS[taps])
        cells[f"{name}/{taps}/{seed}"] = measured(values, labels, given.train, seed)
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))
    return found


def measured(values: np.ndarray, labels: np.ndarray, train: int, seed: int) -> dict[str, Any]:
    """Accuracy by readout: `adapters 0.25` has a quarter of the adapters and the rest of ridge."""
    began = time.process_time()
    both = solved(trained(values, labels, np.arange(train), seed, "ridge"))
    accuracy = {f"adapters {share:g}": judged(both, share) for share in SHARES}
    both.averaged = delivered(both.averaged, "int8")
    as_sent = {f"adapters {share:g}": judged(both, share) for share in (0.25, 0.0)}
    seen = np.arange(train)[np.arange(train) % 10 > 0]
    chosen = solved(trained(values, labels, seen, seed, "ridge"))
    unseen = np.setdiff1d(np.arange(train), seen)
    share = min(SHARES, key=lambda share: squared_error(chosen, share, values, labels, unseen))
    chosen.fit(records_of(values, labels, np.arange(train)))
    accuracy["chosen"] = judged(chosen, share)
    logistic = trainer_of(values, labels, train, seed, "logistic")
    logistic.fit(records_of(values, labels, np.arange(train), "cross-entropy"))
    accuracy["logistic"] = logistic.evaluate()["own"]
    spent = round(time.process_time() - began, 2)
    return {"accuracy": accuracy, "as_sent_in_int8": as_sent, "chosen_share": share, "cpu_s": spent}


def trainer_of(
    values: np.ndarray, labels: np.ndarray, train: int, seed: int, skip: str
) -> SideNetworkTrainer:
    """Untrained, to be judged on all texts after the first so many."""
    classes = int(labels.max()) + 1
    config = SideNetworkConfig(skip=skip, adapters=0.0 if skip == "logistic" else 0.25)
    shape = shape_for(config, values.shape[1] - 1, {"own": values.shape[2]}, classes)
    prediction = uniform(labels[train:], classes)
    held = {"own": HeldOut(values[train:], prediction, labels[train:])}
    loss = "cross-entropy" if skip == "logistic" else "squared-error"
    trainer = SideNetworkTrainer(shape, config, Training(1e-3, 1.0, loss), held, seed)
    trainer.observe("own", torch.from_numpy(values[:train]))
    return trainer


def trained(
    values: np.ndarray, labels: np.ndarray, seen: np.ndarray, seed: int, skip: str
) -> tuple[SideNetworkTrainer, list]:
    """The adapters as the server trains them when all these records are there, and the records."""
    train = int(seen.max()) + 1
    trainer, records = (
        trainer_of(values, labels, train, seed, skip),
        records_of(values, labels, seen),
    )
    rng = np.random.default_rng(seed)
    for _ in range(REPLAY * len(seen) // BATCH):
        trainer.train([records[i] for i in rng.choice(len(seen), BATCH, replace=False)])
    return trainer, records


def solved(made: tuple[SideNetworkTrainer, list]) -> SideNetworkTrainer:
    """With its skip fitted to the records."""
    trainer, records = made
    trainer.fit(records)
    return trainer


def records_of(
    values: np.ndarray, labels: np.ndarray, rows: np.ndarray, loss: str = "squared-error"
) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """As they cross the link."""
    y_b = uniform(labels[rows], int(labels.max()) + 1)
    targets = difference(labels[rows], y_b)
    if loss == "cross-entropy":
        targets = np.concatenate([targets + y_b, y_b], axis=1)
    vectors = torch.from_numpy(values[rows])
    return [("own", v, t) for v, t in zip(vectors, torch.from_numpy(targets), strict=True)]


def uniform(labels: np.ndarray, classes: int) -> np.ndarray:
    """The backbone's own prediction for a new task."""
    return np.full((len(labels), classes), 1 / classes, np.float32)


def shared(trainer: SideNetworkTrainer, share: float) -> SideNetworkTrainer:
    """The same, with another share of the adapters; of 1, which is no skip, nearly all."""
    share = min(share, 1 - 1e-9)
    trainer.averaged.config = dataclasses.replace(trainer.averaged.config, adapters=share)
    return trainer


def judged(trainer: SideNetworkTrainer, share: float) -> float | None:
    """Accuracy with this share of the adapters."""
    return shared(trainer, share).evaluate()["own"]


def squared_error(
    trainer: SideNetworkTrainer,
    share: float,
    values: np.ndarray,
    labels: np.ndarray,
    rows: np.ndarray,
) -> float:
    """Of the prediction difference, with this share of the adapters."""
    y_b = uniform(labels[rows], int(labels.max()) + 1)
    held = HeldOut(values[rows], y_b, labels[rows])
    off = shared(trainer, share).predict("own", held) - y_b - difference(labels[rows], y_b)
    return float((off**2).sum())


def table(found: dict[str, Any]) -> str:
    """Mean over seeds of each data set and depth: a row a readout, and the mean of all."""
    cells = {tuple(key.split("/")): cell["accuracy"] for key, cell in found["cells"].items()}
    columns = list(dict.fromkeys((name, taps) for name, taps, _ in cells))
    readouts = list(next(iter(cells.values())))
    head = " | ".join(" ".join(column) for column in columns)
    lines = [f"| readout | {head} | mean |", "|---" * (2 + len(columns)) + "|"]
    for readout in readouts:
        means = [
            statistics.fmean(
                cell[readout] for (*of, _), cell in cells.items() if tuple(of) == column
            )
            for column in columns
        ]
        shown = " | ".join(f"{mean:.3f}" for mean in [*means, statistics.fmean(means)])
        lines.append(f"| {readout} | {shown} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
