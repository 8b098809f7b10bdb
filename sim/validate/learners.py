"""Who computes what for real: a device its own passes at that moment, the server its updates on
what came over the wire.

`SUPPORTED` names the methods whose computation and messages are known here; the processes
themselves run unchanged. Those that end while devices are still at work (fedasync, fedbuff) or talk
within a pass (splitfed) would need more messages.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

from learning.codecs.chain import chain_of
from learning.side.prediction_difference import TEMPERATURES, VERBALISERS, backbone_prediction
from sim.kernel.learner import Learner
from sim.methods.federated_peft.fed_avg import FedAvg, FedAvgLearner
from sim.methods.federated_peft.learner import FederatedLearner
from sim.methods.federated_peft.shared import EXACT
from sim.methods.side_tuning.fed_mobillm import FedMobiLLM
from sim.methods.side_tuning.learner import SideTuningLearner
from sim.methods.side_tuning.pae_mobillm import PaeMobiLLM
from sim.methods.side_tuning.protection import wanted_axes
from sim.methods.side_tuning.sending import wants_public_axes
from sim.methods.side_tuning.shared import SideTuning, SideTuningSettings
from sim.methods.side_tuning.shipping import precision_of
from sim.methods.side_tuning.tap_choice import asking_rule

if TYPE_CHECKING:
    from sim.kernel.device import Device
    from sim.simulation import Simulation

SUPPORTED = {FedMobiLLM: "fed-mobillm", PaeMobiLLM: "pae-mobillm", FedAvg: "fedavg-*"}
NOBODY = np.empty(0, dtype=np.int64)


def require_executed(config: Any) -> None:
    """Raise ValueError for what of a supported method's settings processes do not compute: before
    any is started.
    """
    if not isinstance(config, SideTuningSettings):
        whole = chain_of(config.wire) == chain_of(config.wire_down) == EXACT
        if not whole or config.differential_privacy is not None:
            raise ValueError(
                "method.wire, wire_down and differential_privacy: executed runs send what is "
                "trained, as it is; leave them out"
            )
        return
    if (kind := config.backbone_prediction) in ("public-head", "own-head", *VERBALISERS):
        raise ValueError(
            f"method.backbone_prediction: {kind} is not made in executed runs; choose another"
        )
    if asking_rule(config):
        raise ValueError(
            "method.taps: no texts choose layers in executed runs; say `interval`, a number or a "
            "list"
        )
    if wanted_axes(config):
        raise ValueError(
            "method.protection.offset: no axes of public texts are made in executed runs; leave it "
            "out"
        )
    if wants_public_axes(config):
        raise ValueError(
            "method.wire: no axes of public texts are made in executed runs; say random-K, or "
            "leave pca-K out"
        )


class OnDevice(SideTuningLearner):
    """What a device of a side-tuning method computes: a forward pass when its time has come, and
    the payload's bytes; it prepares nothing.
    """

    _last: np.ndarray  # what the latest forward pass put out, which `encode` predicts from

    def __init__(self, sim: Simulation, config: SideTuningSettings, device: Device) -> None:
        from learning.backbones.backbone import Backbone

        super().__init__(sim, config)
        self._spec = sim.costing.learned[device.backbone]
        self._backbone = Backbone(self._spec)
        self._names: np.ndarray | None = None
        kind = self.config.backbone_prediction
        if kind in TEMPERATURES:
            words = sim.task.said_tokens(self._spec, kind)
            self._names = self._pass(words)[:, -1]

    def forward(self, backbone: str, samples: np.ndarray) -> np.ndarray:
        """A real forward pass: the sampled vectors of a batch, float32 [n, vectors, hidden]."""
        readouts = self.world.host.start(
            lambda: self._pass(self.world.task.tokens(self._spec, samples))
        ).result()
        self._last = readouts[:, -1]
        return self.projected(backbone, readouts[:, self.vectors[backbone]])

    def _pass(self, tokens: Any) -> np.ndarray:
        """One pass over the batch, padded to its longest text, which is what the clock charges for.

        The store's canonical shapes (sixteen rows of every length) are for bits that do not depend
        on the batch.
        """
        longest = int(tokens.lengths().max())
        return self._backbone._forward(
            tokens, range(len(tokens)), longest, self.config.readout
        ).numpy()

    def _own_prediction(self, backbone: str, samples: np.ndarray) -> np.ndarray:
        kind, classes = self.config.backbone_prediction, self.world.task.classes
        head = self._head_stream(backbone)
        return backbone_prediction(kind, self._last, classes, self._names, head)


class AtServer(SideTuningLearner):
    """The real side network, trained on the bytes that came; the only texts it has are the held-out
    ones.
    """

    def _parts_of(self, backbone: str) -> list[np.ndarray]:
        return [NOBODY]


def for_device(sim: Simulation, device: Device) -> Learner:
    """The device's share of the learning: its own backbone, and nobody else's texts."""
    if isinstance(sim.method, SideTuning):
        return OnDevice(sim, sim.method.config, device)
    learned = {device.backbone: sim.costing.learned[device.backbone]}
    view = _view(sim, [device], dataclasses.replace(sim.task, test=NOBODY), learned)
    return _federated(sim, view)


def for_server(sim: Simulation) -> Learner:
    """The server's share: the model, what it evaluates on, and no device's texts."""
    if isinstance(sim.method, SideTuning):
        learner = AtServer(sim, sim.method.config)
        learner.prepare()
        return learner
    return _federated(sim, _view(sim, [], sim.task, sim.costing.learned))


def _view(sim: Simulation, devices: list[Device], task: Any, learned: dict) -> SimpleNamespace:
    costing = dataclasses.replace(sim.costing, learned=learned)
    return SimpleNamespace(
        streams=sim.streams, task=task, costing=costing, devices=devices, host=sim.host
    )


def _federated(sim: Simulation, view: SimpleNamespace) -> FederatedLearner:
    method = sim.method
    assert isinstance(method, FedAvg)  # `SUPPORTED` has no other that is not side-tuning
    return FedAvgLearner(view, *method.learner_args, method.config.server_optimiser)


def shipped(learner: SideTuningLearner, backbone: str) -> bytes:
    """What a device needs to predict, as it is delivered."""
    from learning.side.delivery import encode

    precision = precision_of(learner.config.ship_side_network)
    return encode(learner.tuning.value.averaged, backbone, precision)


def warm_up(learner: Learner, device: Device | None) -> None:
    """Compute a piece of each kind once and forget it: what a library sets up at its first call is
    no device's time.
    """
    if isinstance(learner, OnDevice) and device is not None:
        learner.forward(device.backbone, device.samples[: learner.config.device_batch])
    elif isinstance(learner, FederatedLearner) and device is not None:
        from learning.federated.local_training import LocalTraining

        settings = LocalTraining(1, 2, 1e-9, 0.0, "adamw", 0.0)
        how = (device.backbone, device.samples[:2], learner.state, settings, 0)
        learner.client(FedAvg.client_update, *how)
    elif isinstance(learner, AtServer):
        _warm_up_side_tuning(learner)


def _warm_up_side_tuning(learner: AtServer) -> None:
    from learning.side.activations import Activations, encode
    from learning.side.tuning import SideNetworkTrainer

    real, shape = learner.tuning.value, learner.shape
    twin = SideNetworkTrainer(shape, learner.config.side_network, real.training, {}, 0)
    for backbone, width in shape.backbone_widths.items():
        values = np.zeros((4, shape.vectors, width), np.float32)
        targets = np.zeros(
            (4, shape.classes * (2 if learner.config.loss == "cross-entropy" else 1)), np.float32
        )
        twin.ingest(backbone, encode(Activations(values, targets, np.arange(4)), "float16"))
    twin.step(list(range(4 * len(shape.backbone_widths))))
