"""SplitFed (arXiv 2004.12088): the device has the embeddings and the first layers, the server the
rest and the head, which for responses is the model's own vocabulary.

Every batch, activations and labels (or the tokens to be said) go up and their gradient comes down.
In V1 the server keeps one copy of its part for each client, all clients work at once, and both
sides are averaged after a round. In V2 there is one server part; clients have their turns one by
one, in random order, and the client parts alone are averaged (docs/forward_only_and_split.md).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from learning.backbones.catalogue import config_of, depth_of
from learning.backbones.language_head import output_embedding, tied
from learning.cost.count_split import part_architecture
from sim.kernel.device import Device
from sim.kernel.learned import Learned
from sim.kernel.ledger import DATA_KINDS, Contents, Item, only
from sim.kernel.work import ClientTask
from sim.kernel.world import World
from sim.methods.federated_peft.shared import LEARNING_RATES
from sim.methods.responses import vocabularies
from sim.methods.split.learner import (
    Held,
    SplitLearner,
    mask_of,
    packed_vectors,
    single_thread,
    unpacked_vectors,
)
from sim.methods.split.shared import SplitSettings, SplitTraining
from sim.methods.split.targets import Targets
from sim.methods.trained import TrainableSettings

if TYPE_CHECKING:
    from torch import Tensor

    from learning.federated.aggregation import State
    from learning.federated.split import Dropout, Moments, Optimiser, Part, Pass


def client_update(
    optimiser: Optimiser, held: Held, passed: Pass, gradient_BTD: Tensor
) -> tuple[State, Moments]:
    """The device's layers backward from the gradient that came down, and one step."""
    gradients, _ = passed.backward(gradient_BTD)
    return optimiser.step(held.state, gradients, held.moments)


def server_update(
    optimiser: Optimiser,
    held: Held,
    part: Part,
    h_BTD: Tensor,
    mask_BT: Tensor,
    targets: Targets,
    dropout: Dropout = (0.0, 0),
) -> tuple[Tensor, State, Moments]:
    """The rest of the model on what came up, and one step; first the gradient to send down."""
    from learning.federated.split import learn

    wanted, segments_BT, _ = targets
    batch = (h_BTD, mask_BT, wanted, dropout, segments_BT)
    _, gradients, back_BTD = learn(part, held.state, *batch)
    assert back_BTD is not None  # this part has received vectors
    return back_BTD, *optimiser.step(held.state, gradients, held.moments)


class SplitFedLearner(SplitLearner):
    """Parts 0 (device: embeddings and the first `layers` layers) and 1 (server: the rest and the
    head).
    """

    def _cut(self, model: Any, layers: int) -> Sequence[Part]:
        from learning.federated.split import splitfed

        return splitfed(model, layers)

    def learn(
        self, backbone: str, count: int, seed: int, held: Held, data: Learned
    ) -> tuple[Learned, Held]:
        """Begin a server update on `count` texts: the gradient to send down, and what is held."""
        dropout = self.dropout(seed, 1)
        return self.step_of(self._learned, backbone, count, dropout, held, data)

    def _learned(
        self, backbone: str, count: int, dropout: Dropout, held: Held, data: bytes
    ) -> tuple:
        single_thread()
        mask_BT = mask_of(np.frombuffer(data, "<i4", count))
        rest = data[4 * count :]
        targets = self.targets_from(rest, mask_BT)
        vectors = rest[targets.nbytes :]
        h_BTD = unpacked_vectors(vectors, mask_BT, self.by, self.width_of(backbone))
        part = self.parts[backbone][1]
        batch = (h_BTD, mask_BT, targets, dropout)
        back_BTD, *after = server_update(self.optimiser, held, part, *batch)
        return packed_vectors(back_BTD, mask_BT, self.by), *after


class SplitFed(SplitTraining):
    """Split learning in rounds: first layers on the device, the rest at the server.

    splitfed-v1: Split learning in rounds, clients in parallel: both sides' models are averaged.

    splitfed-v2: Split learning in rounds, clients in turn: one model at the server sees them all.
    """

    learner: SplitFedLearner
    learner_class = SplitFedLearner
    keeps_on_device = DATA_KINDS - {"label"}

    class Config(TrainableSettings, SplitSettings):
        """Settings of SplitFed."""

        kind: Literal["splitfed-v1", "splitfed-v2"]
        layers: int = Field(1, ge=1)
        """Layers on the device; no backbone of the fleet may have fewer."""
        peft: Literal["full", "lora", "adapter", "bitfit"] = "full"
        """What both sides train."""
        rounds: int = Field(100, ge=1)
        learning_rate: float | None = Field(None, gt=0)
        """Default FedPETuning's: LoRA 5e-3, adapter 1e-3, BitFit 5e-3, full 5e-5."""
        rank: int = Field(8, ge=1)
        alpha: float = Field(8, gt=0)
        bottleneck: int = Field(16, ge=1)

    def __init__(self, config: Config, world: World) -> None:
        kind, size = config.peft, (world.task.classes, *config.size)
        specs = (*world.costing.learned.values(), *world.costing.charged.values())
        self.says = bool(vocabularies(world))
        if self.says:  # the tokens themselves go up; their topics nobody learns
            self.keeps_on_device = DATA_KINDS - {"token ids"}
        for spec in specs if self.says and kind == "full" else ():
            if output_embedding(spec).is_tied:
                raise tied(spec, kind)
        shallowest = min(depth_of(config_of(spec)) for spec in specs)
        if config.layers > shallowest:
            raise ValueError(
                f"layers: {config.layers} is too deep a cut; the shallowest backbone has "
                f"{shallowest}"
            )
        parts = {
            name: (
                part_architecture(spec, config.layers, True, False, kind, *size),
                part_architecture(
                    spec, world.costing.depths()[name] - config.layers, False, True, kind, *size
                ),
            )
            for name, spec in world.costing.charged.items()
        }
        rate = config.learning_rate or LEARNING_RATES[kind]
        in_parallel = config.kind == "splitfed-v1"
        super().__init__(config, world, parts, in_parallel, rate, config.layers, *config.classifier)

    def batch(
        self, device: Device, task: ClientTask, samples: np.ndarray, seed: int, slot: list
    ) -> Generator[Any, Any, Any]:
        """Forward, activations and what they are learned by up, the server's step, their gradient
        down, backward.
        """
        charge, name, work = self.charging, device.backbone, self.learner.work
        ahead = charge.with_encoding(charge.forward(device, samples, 0), device, samples, 0)
        sent: Any = yield from device.compute(
            work(ahead, self.learner.embed, name, samples, slot[0], seed, True)
        )
        states = charge.states(device, samples, 0, self.config.layers)
        held = Contents(states, *self.targets(device, samples))
        up = yield from self.exchange(device, task, samples, held, sent and sent.data)
        both = charge.forward(device, samples, 1) + charge.backward(device, samples, 1)
        learn = (self.learner.learn, name, len(samples), seed)
        gradient = yield from self.trained(device, task, up, both, *learn)
        yield from device.download(only("gradient", states.nbytes))
        back = charge.backward(device, samples, 0)
        finish = work(back, self.learner.finish, client_update, slot, sent, gradient)
        return (yield from device.compute(finish))

    def targets(self, device: Device, samples: np.ndarray) -> tuple[Item, Item]:
        """What goes up beside the vectors: each text's length and label; or its length, how many of
        its last tokens are to be said, and these.
        """
        each = 4 * len(samples)
        if not self.says:
            return Item("length", each), Item("label", each)
        said = int(self.world.response_lengths(device, samples).sum())
        return Item("length", 2 * each), Item("token ids", 4 * said)
