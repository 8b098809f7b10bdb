"""pfl-research: its simulated backend and FederatedAveraging.
python pfl_.py MODEL=ROUNDS...
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import workload
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import nn


class Model(nn.Module):
    """The workload's model with the two functions that pfl asks of one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def loss(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy."""
        return F.cross_entropy(self.inner(ids), labels)

    def metrics(self, *_: torch.Tensor) -> dict[str, object]:
        """None."""
        return {}


class EndOfRound(TrainingProcessCallback):
    """Notes it."""

    def __init__(self, rounds: workload.Rounds) -> None:
        self.rounds = rounds

    def after_central_iteration(
        self, metrics: Metrics, model: object, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Go on."""
        self.rounds.end()
        return False, Metrics()


def run(name: str, count: int, rounds: workload.Rounds) -> nn.Module:
    """Train."""
    inner = workload.model(name)
    model = Model(inner)
    texts = [Dataset(raw_data=list(client)) for client in workload.clients()]
    sampler = get_user_sampler("minimize_reuse", list(range(workload.CLIENTS)))
    federated = FederatedDataset(lambda client: texts[client], sampler)
    central = torch.optim.SGD(model.parameters(), lr=1.0)
    rounds.end()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=count,
            evaluation_frequency=count + 1,
            train_cohort_size=workload.A_ROUND,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(training_data=federated, val_data=None),
        model=PyTorchModel(model, torch.optim.SGD, central),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=workload.EPOCHS,
            local_learning_rate=workload.RATE,
            local_batch_size=workload.BATCH,
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=workload.BATCH),
        callbacks=[EndOfRound(rounds)],
    )
    return inner


if __name__ == "__main__":
    workload.measure("pfl", run, __doc__)
