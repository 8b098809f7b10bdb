"""A plain loop: what is left of FedAvg without a framework."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
import workload
from torch import Tensor, nn


def plain_loop(name: str, count: int, rounds: workload.Rounds) -> nn.Module:
    """Train a model so many rounds."""
    rng, model, clients = np.random.default_rng(0), workload.model(name), workload.clients()
    parameters = list(model.parameters())
    state = [p.detach().clone() for p in parameters]
    rounds.end()
    for _ in range(count):
        total = [torch.zeros_like(p) for p in state]
        for chosen in rng.choice(len(clients), workload.A_ROUND, replace=False):
            with torch.no_grad():
                torch._foreach_copy_(parameters, state)
            client_update(model, parameters, *clients[chosen], rng)
            torch._foreach_add_(total, [p.detach() for p in parameters])
        state = [summed / workload.A_ROUND for summed in total]
        rounds.end()
    with torch.no_grad():
        torch._foreach_copy_(parameters, state)
    return model


def client_update(
    model: nn.Module,
    parameters: list[Tensor],
    ids: Tensor,
    labels: Tensor,
    rng: np.random.Generator,
) -> None:
    """The local epochs of one client."""
    optimiser = torch.optim.SGD(parameters, lr=workload.RATE)
    for _ in range(workload.EPOCHS):
        for chosen in torch.from_numpy(rng.permutation(len(ids))).split(workload.BATCH):
            optimiser.zero_grad()
            F.cross_entropy(model(ids[chosen]), labels[chosen]).backward()
            optimiser.step()
