"""FedLab: its standalone pipeline, serial trainer and synchronous server.
python fedlab_.py MODEL=ROUNDS...
"""

from __future__ import annotations

import logging

import torchvision_shim  # noqa: F401 - before fedlab
import workload
from fedlab.contrib.algorithm.basic_client import SGDSerialClientTrainer
from fedlab.contrib.algorithm.basic_server import SyncServerHandler
from fedlab.core.standalone import StandalonePipeline
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Texts:
    """What the trainer asks for a client's loader."""

    def __init__(self) -> None:
        self.of = [TensorDataset(*client) for client in workload.clients()]

    def get_dataloader(self, client: int, batch_size: int) -> DataLoader:
        """In an order drawn anew."""
        return DataLoader(self.of[client], batch_size=batch_size, shuffle=True)


class Pipeline(StandalonePipeline):
    """Evaluation is the place where a user hears of a round's end."""

    def __init__(self, *parts: object, rounds: workload.Rounds) -> None:
        super().__init__(*parts)
        self.evaluate = rounds.end


def run(name: str, count: int, rounds: workload.Rounds) -> nn.Module:
    """Train."""
    logging.disable(logging.INFO)
    model = workload.model(name)
    server = SyncServerHandler(model, count, workload.A_ROUND / workload.CLIENTS)
    trainer = SGDSerialClientTrainer(model, workload.CLIENTS)
    trainer.setup_dataset(Texts())
    trainer.setup_optim(workload.EPOCHS, workload.BATCH, workload.RATE)
    pipeline = Pipeline(server, trainer, rounds=rounds)
    rounds.end()
    pipeline.main()
    return server.model


if __name__ == "__main__":
    workload.measure("fedlab", run, __doc__)
