"""Flower: its simulation runtime (Ray) with one actor, and FedAvg.
python flower_.py MODEL=ROUNDS...
"""

from __future__ import annotations

import logging
import os

# no telemetry; and Ray's own niceness of 15 starves on a machine that does anything else
os.environ.update(FLWR_TELEMETRY_ENABLED="0", RAY_worker_niceness="0")

import torch
import torch.nn.functional as F
import workload
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def client_app(name: str) -> ClientApp:
    """A client trains the model that came on its own texts."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model, clients = workload.kept(name)  # the app itself is unpickled for every message
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        own = TensorDataset(*clients[context.node_config["partition-id"]])
        optimiser = torch.optim.SGD(model.parameters(), lr=workload.RATE)
        for _ in range(workload.EPOCHS):
            for ids, labels in DataLoader(own, batch_size=workload.BATCH, shuffle=True):
                optimiser.zero_grad()
                F.cross_entropy(model(ids), labels).backward()
                optimiser.step()
        content = {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": len(own)}),
        }
        return Message(content=RecordDict(content), reply_to=message)

    return app


def run(name: str, count: int, rounds: workload.Rounds) -> nn.Module:
    """Train."""
    logging.disable(logging.INFO)
    model, app = workload.model(name), ServerApp()

    @app.main()
    def serve(grid: Grid, context: Context) -> None:
        strategy = FedAvg(
            fraction_train=workload.A_ROUND / workload.CLIENTS,
            fraction_evaluate=0.0,
            min_available_nodes=workload.CLIENTS,
        )
        found = strategy.start(
            grid,
            ArrayRecord(model.state_dict()),
            num_rounds=count,
            evaluate_fn=rounds.end,  # called before the first round and after each
        )
        model.load_state_dict(found.arrays.to_torch_state_dict())

    one = {
        "init_args": {"address": "local", "num_cpus": 1},  # not another's cluster
        "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
    }
    run_simulation(app, client_app(name), workload.CLIENTS, backend_config=one)
    return model


if __name__ == "__main__":
    workload.measure("flwr", run, __doc__, children=True)
