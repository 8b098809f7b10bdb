"""mobifleet: `mobifleet.run` of fedavg-full with everything in it (clock, charges, journal, files).
python mobifleet_.py MODEL=ROUNDS...
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import workload

import mobifleet
from learning.data.texts import TextDataset


def scenario(model: str, rounds: int) -> dict[str, object]:
    """A file's content."""
    return {
        "name": "peers",
        "task": {
            "dataset": "trec-questions",  # stands where `texts` come
            "train": workload.CLIENTS * workload.TEXTS,
            "test": workload.CLASSES,
            "max_tokens": workload.TOKENS,
            "partition": {"kind": "iid"},
        },
        "backbones": {model: {"random": {"model_type": "bert", **workload.bert_config(model)}}},
        "fleet": [
            {"count": workload.CLIENTS, "device": "jetson-tx2", "backbone": model, "link": "lte"}
        ],
        "method": {
            "kind": "fedavg-full",
            "rounds": rounds,
            "participation": workload.A_ROUND / workload.CLIENTS,
            "local_epochs": workload.EPOCHS,
            "device_batch": workload.BATCH,
            "learning_rate": workload.RATE,
            "optimiser": "sgd",
            "schedule": "constant",
            "dropout": 0.0,
            "head": "linear",
            "evaluate_every": rounds,
        },
    }


def texts() -> TextDataset:
    """The workload's words, spelled; four texts more to test on. The tokenizer puts one before."""
    ids, labels = (part.reshape(-1, *part.shape[2:]) for part in workload.words())
    extra = np.arange(workload.CLASSES)
    said = [" ".join(f"w{word}" for word in row[1:]) for row in [*ids, *ids[extra]]]
    classes = np.concatenate([labels, labels[extra]])
    # a text that stands twice would be counted as one
    said[-len(extra) :] = [f"{text} w{k}" for k, text in enumerate(said[-len(extra) :])]
    names = tuple(f"class {k}" for k in range(workload.CLASSES))
    return TextDataset("words", said, None, classes.astype(np.int64), names)


def run_of(model: str, rounds: int, data: TextDataset) -> mobifleet.Run:
    """A run in a folder that goes away."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scenario.yaml"
        file.write_text(json.dumps(scenario(model, rounds)), encoding="utf-8")  # which is YAML, too
        how = {"workers": 1, "figures": False, "quiet": True}
        return mobifleet.run(file, out=Path(folder) / "run", texts=data, **how)


def run(name: str, count: int, rounds: workload.Rounds) -> None:
    """Steady rounds are a run of `count` less a run of one, both after a first one."""
    data, few, many = texts(), workload.Rounds(), workload.Rounds()
    rounds.end()
    run_of(name, 1, data)
    rounds.end()
    for instants, length in ((few, 1), (many, count)):
        instants.end()
        run_of(name, length, data)
        instants.end()
    for told, short, long in ((rounds.cpu, few.cpu, many.cpu), (rounds.wall, few.wall, many.wall)):
        steady = (long[1] - long[0]) - (short[1] - short[0])
        told += [told[1] + steady * (k + 1) / (count - 1) for k in range(count - 1)]


if __name__ == "__main__":
    workload.measure("mobifleet", run, __doc__)
