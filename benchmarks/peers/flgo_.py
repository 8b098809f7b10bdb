"""FLGo: a task made of a `general` benchmark, fedavg, its default simulator.
python flgo_.py MODEL=ROUNDS...
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from pathlib import Path

import torchvision_shim  # noqa: F401 - before flgo
import workload
from torch import nn

BENCHMARK = """
import torch
import workload

ids, labels = (torch.cat(part) for part in zip(*workload.clients()))
train_data = torch.utils.data.TensorDataset(ids, labels)
val_data = test_data = None

def data_to_device(batch, device):
    return tuple(part.to(device) for part in batch)

def eval(model, loader, device):
    return {}

def compute_loss(model, batch, device):
    ids, labels = data_to_device(batch, device)
    return {"loss": torch.nn.functional.cross_entropy(model(ids), labels)}

def get_model():
    return workload.model(%r)
"""


def run(name: str, count: int, rounds: workload.Rounds) -> nn.Module:
    """Train, in a folder where FLGo puts its benchmark and task."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        sys.path.insert(0, folder)
        runner = runner_of(name, count, rounds)
        runner.run()
        return runner.model


def runner_of(model: str, count: int, rounds: workload.Rounds):
    """What FLGo runs, in the working directory."""
    import flgo
    from flgo.algorithm import fedavg
    from flgo.benchmark.partition import BasicPartitioner
    from flgo.experiment.logger import BasicLogger

    class AsDealt(BasicPartitioner):
        """Each client's own texts."""

        num_clients = workload.CLIENTS

        def __call__(self, data: object) -> list[list[int]]:
            first = range(0, workload.CLIENTS * workload.TEXTS, workload.TEXTS)
            return [list(range(start, start + workload.TEXTS)) for start in first]

    class EndOfRound(BasicLogger):
        """Called before the first round and after each."""

        def log_once(self, *args: object, **kwargs: object) -> None:
            rounds.end()

    Path("config.py").write_text(BENCHMARK % model, encoding="utf-8")
    made = flgo.gen_benchmark_from_file(f"own_{model}", "config.py", data_type="general")
    flgo.gen_task_by_(__import__(made), AsDealt(), "task")
    option = {
        "num_rounds": count,
        "proportion": workload.A_ROUND / workload.CLIENTS,
        "sample": "uniform",
        "aggregate": "uniform",
        "num_epochs": workload.EPOCHS,
        "batch_size": workload.BATCH,
        "learning_rate": workload.RATE,
        "train_holdout": 0.0,
        "no_log_console": True,
        "no_tqdm": True,
    }
    return flgo.init("task", fedavg, option, Logger=EndOfRound)


if __name__ == "__main__":
    workload.measure("flgo", run, __doc__)
