"""SCAFFOLD (Karimireddy et al., ICML 2020, option II), as a user would add it: one file, outside
the package. `mobifleet run examples/methods/scaffold.yaml --allow-code`

Devices of unlike data drift apart while they train; control variates, the server's c and each
device's own c_i, take that drift out of every gradient. Both cross the network with the model.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from learning.cost.costs import Cost
from learning.federated.aggregation import model_delta, weighted_mean
from sim.kernel.learner import learner_for
from sim.methods.federated_peft.learner import FederatedLearner
from sim.methods.federated_peft.shared import RoundSettings, SynchronousPeft


def client_update(client, state, c, c_own, settings, seed):
    """K steps of y <- y - rate (g - c_i + c); sends y - x and what c_i changed by; keeps c_i."""
    x = client.part_of(state)
    zero = {name: 0 * tensor for name, tensor in x.items()}
    c, c_own = zero if c is None else client.part_of(c), c_own or zero
    drift = {name: c[name] - c_own[name] for name in x}
    y = client.train(x, settings, seed, drift)
    moved_per_gradient = settings.learning_rate * y.steps
    c_new = {name: (x[name] - y.state[name]) / moved_per_gradient - drift[name] for name in x}
    return [model_delta(y.state, x), model_delta(c_new, c_own)], c_new


def server_update(state, c, answers, kept, rate, devices):
    """x <- x + rate mean(y - x); c <- c + (|S| / N) mean(change of c_i)."""
    equal = [1.0] * len(answers)
    dx = weighted_mean([dx for dx, _ in answers], equal)
    dc = weighted_mean([dc for _, dc in answers], equal)
    c = c or {name: 0 * tensor for name, tensor in state.items()}
    x = {name: tensor + rate * dx.get(name, 0) for name, tensor in state.items()}
    share = len(answers) / devices
    return x, {name: tensor + share * dc.get(name, 0) for name, tensor in c.items()}


class Scaffold(SynchronousPeft):
    """Federated PEFT with control variates against the drift of unlike devices."""

    class Config(RoundSettings):
        """Settings of SCAFFOLD."""

        peft: Literal["lora", "adapter", "bitfit", "full", "head"] = "lora"
        optimiser: Literal["sgd"] = "sgd"
        momentum: float = Field(0.0, ge=0, le=0)
        schedule: Literal["constant"] = "constant"  # option II divides by steps of one length
        learning_rate: float = Field(0.05, gt=0)
        server_learning_rate: float = Field(1.0, gt=0)

    def new_learner(self):
        rate = self.config.server_learning_rate
        return learner_for(self.world, ScaffoldLearner, *self.learner_args, rate)

    def nbytes(self, device):
        """The model and the control variate, each way."""
        return 2 * super().nbytes(device)

    def broadcast(self):
        return None if self.world.dry else (self.learner.state, self.learner.memory)

    def local_training(self, device, task):
        """Each step adds c - c_i to the gradient; c, c_i and the gradient's copy are in memory."""
        work, nbytes = super().local_training(device, task), super().nbytes(device)
        steps = self.config.local_epochs * -(-len(device.samples) // self.config.device_batch)
        cost = work.cost + Cost(steps * nbytes / 4, 3 * steps * nbytes)
        cost = Cost(cost.flop, cost.bytes_moved, cost.peak_bytes + 3 * nbytes)
        how = (task.model, self.settings, self.seed(device, task.version))
        verb = self.learner.train_corrected
        return self.learner.work(cost, verb, device.id, device.backbone, device.samples, *how)


class ScaffoldLearner(FederatedLearner):
    """The two updates above, and what each device keeps."""

    def __init__(self, world, *model):
        *model, self.rate = model
        super().__init__(world, *model)
        self.c_of = {}

    def train_corrected(self, device_id, backbone, samples, received, settings, seed):
        how = (*received, self.c_of.get(device_id), settings, seed)
        sent, self.c_of[device_id] = self.client(client_update, backbone, samples, *how, results=2)
        return sent

    def aggregate(self, backbones, received, sent, weights):
        return self.serve(server_update, backbones, sent, self.rate, len(self.world.devices))
