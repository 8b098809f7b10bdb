"""APPFL: its virtual-time simulator `vsim` with the synchronous driver.
python appfl_.py MODEL=ROUNDS...

With APPFL_COLLECTS=1 garbage is collected at every step, which is its default; else never.
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from pathlib import Path

import torchvision_shim  # noqa: F401 - before appfl
import workload
from appfl.agent import ClientAgent, ServerAgent
from appfl.vsim import ClientProfile, SyncSimDriver
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.utils.data import TensorDataset

COLLECTS = os.environ.get("APPFL_COLLECTS") == "1"


def texts_of(client: int) -> tuple[TensorDataset, None]:
    """A client's data set; nothing to validate on."""
    return TensorDataset(*workload.clients()[client]), None


def accuracy(labels: object, logits: object) -> float:
    """APPFL asks for a metric at every update; this one takes no time."""
    return 0.0


def configuration(model: str, count: int, folder: str) -> DictConfig:
    """The server's, with what it tells clients."""
    here, log = Path(__file__), {"logging_output_dirname": folder}
    train = {
        "trainer": "VanillaTrainer",
        "mode": "epoch",
        "num_local_epochs": workload.EPOCHS,
        "optim": "SGD",
        "optim_args": {"lr": workload.RATE},
        "loss_fn": "CrossEntropyLoss",
        "metric_path": str(here),
        "metric_name": "accuracy",
        "train_batch_size": workload.BATCH,
        "do_validation": False,
        "optimize_memory": COLLECTS,
        **log,
    }
    kwargs = {"optimize_memory": COLLECTS}
    server = {
        "num_clients": workload.CLIENTS,
        "num_global_epochs": count,
        "scheduler": "SyncScheduler",
        "scheduler_kwargs": {"same_init_model": True, **kwargs},
        "aggregator": "FedAvgAggregator",
        "aggregator_kwargs": {"client_weights_mode": "equal", **kwargs},
        "device": "cpu",
        **kwargs,
        **log,
    }
    made = {
        "model_path": str(here.with_name("workload.py")),
        "model_name": "model",
        "model_kwargs": {"name": model},
    }
    client = {"train_configs": train, "model_configs": made}
    return OmegaConf.create({"client_configs": client, "server_configs": server})


def client_agent(number: int, folder: str) -> ClientAgent:
    """A client before the server has told it anything."""
    data = {
        "dataset_path": __file__,
        "dataset_name": "texts_of",
        "dataset_kwargs": {"client": number},
    }
    told = {
        "client_id": f"client{number}",
        "train_configs": {"device": "cpu", "logging_output_dirname": folder},
        "data_configs": data,
        "optimize_memory": COLLECTS,
    }
    return ClientAgent(OmegaConf.create(told))


def run(name: str, count: int, rounds: workload.Rounds) -> nn.Module:
    """Train."""
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)

    class Driver(SyncSimDriver):
        def _record_round(self, *args: object, **kwargs: object) -> None:
            super()._record_round(*args, **kwargs)
            rounds.end()

    with tempfile.TemporaryDirectory() as folder:
        server = ServerAgent(configuration(name, count, folder))
        agents = [client_agent(number, folder) for number in range(workload.CLIENTS)]
        for agent in agents:
            agent.load_config(server.get_client_configs())
        driver = Driver(
            server,
            agents,
            {agent.get_id(): ClientProfile() for agent in agents},
            participants_per_round=workload.A_ROUND,
            target_rounds=count,
            base_step_time=0.01,  # else its clock is the host's
            logger=logging.getLogger("vsim"),
        )
        rounds.end()
        driver.run()
        trained = workload.model(name)
        trained.load_state_dict(server.get_parameters(serial_run=True), strict=False)
        return trained


if __name__ == "__main__":
    workload.measure("appfl", run, __doc__)
