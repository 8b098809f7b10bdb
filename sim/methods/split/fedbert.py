"""FedBert (ACM TIST 13(4), 2022): the device has the embeddings and the head, the server every
layer; labels never leave. For responses the head is the model's own vocabulary: a device has it
beside the embeddings, or as the same tensor.

A batch crosses the network four times: embeddings up, the body's output down, its gradient up, the
embeddings' gradient down. Rounds are those of SplitFed: the devices' parts are averaged, and so are
the bodies that the server trains for them.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from learning.cost.count_split import part_architecture
from sim.kernel.device import Device
from sim.kernel.learned import Learned, Taken
from sim.kernel.ledger import DATA_KINDS, Contents, Item, only
from sim.kernel.work import ClientTask
from sim.kernel.world import World
from sim.methods.split.learner import (
    Held,
    Ran,
    Sent,
    SplitLearner,
    mask_of,
    packed_vectors,
    single_thread,
    unpacked_vectors,
)
from sim.methods.split.shared import SplitSettings, SplitTraining

if TYPE_CHECKING:
    from torch import Tensor

    from learning.federated.aggregation import State
    from learning.federated.split import Dropout, Moments, Optimiser, Part, Pass


def head_gradients(
    held: Held,
    head: Part,
    h_BTD: Tensor,
    mask_BT: Tensor,
    targets: Tensor,
    dropout: Dropout = (0.0, 0),
    segments_BT: Tensor | None = None,
) -> tuple[Tensor, State]:
    """The first half of the client update, on the body's output: the gradient to send up, and the
    head's own.
    """
    from learning.federated.split import learn

    batch = (h_BTD, mask_BT, targets, dropout, segments_BT)
    _, gradients, back_BTD = learn(head, held.state, *batch)
    assert back_BTD is not None  # the head has received vectors
    return back_BTD, gradients


def client_update(
    optimiser: Optimiser, held: Held, passed: Pass, gradient_BTD: Tensor, head: State
) -> tuple[State, Moments]:
    """The embeddings backward from the gradient that came down, and one step of them and the
    head; of a tensor that is both, by both gradients.
    """
    gradients, _ = passed.backward(gradient_BTD)
    for name in gradients.keys() & head.keys():
        gradients[name].add_(head[name])
    return optimiser.step(held.state, {**head, **gradients}, held.moments)


def server_update(
    optimiser: Optimiser, held: Held, passed: Pass, gradient_BTD: Tensor
) -> tuple[Tensor, State, Moments]:
    """The body backward from the gradient that came up, and one step; first the gradient to send
    down.
    """
    gradients, back_BTD = passed.backward(gradient_BTD)
    assert back_BTD is not None  # the body has received vectors
    return back_BTD, *optimiser.step(held.state, gradients, held.moments)


class FedBertLearner(SplitLearner):
    """FedBert: parts 0 and 2 (device: embeddings, and readout with head) and 1 (server: the body);
    labels stay.
    """

    own = (0, 2)

    def _cut(self, model: Any, layers: int) -> Sequence[Any]:
        from learning.federated.split import fedbert

        return fedbert(model)

    def body(self, backbone: str, count: int, seed: int, held: Held, data: Learned) -> Sent:
        """The server's layers on what came up; what goes down are vectors alone."""
        how = (backbone, count, self.dropout(seed, 1), held, data)
        return Sent(*self.world.host.learn(self._through_body, *how, stored=(False, True)))

    def _through_body(
        self, backbone: str, count: int, dropout: Dropout, held: Held, data: bytes
    ) -> tuple[Ran, bytes]:
        from learning.federated import split

        single_thread()
        mask_BT = mask_of(np.frombuffer(data, "<i4", count))
        h_BTD = unpacked_vectors(data[4 * count :], mask_BT, self.by, self.width_of(backbone))
        body = self.parts[backbone][1]
        ran = split.forward(body, held.state, h_BTD, mask_BT, dropout=dropout)
        return Ran(ran, mask_BT), packed_vectors(ran.output, mask_BT, self.by)

    def loss(
        self, backbone: str, samples: np.ndarray, seed: int, held: Held, sent: Sent, data: Learned
    ) -> tuple:
        """Begin the first half of a client update: the gradient to send up, and the head's own."""
        how = (backbone, samples, self.dropout(seed, 2), held, sent.ran, data)
        return self.world.host.learn(self._lost, *how, stored=(True, True))

    def _lost(
        self,
        backbone: str,
        samples: np.ndarray,
        dropout: Dropout,
        held: Held,
        ran: Ran,
        data: bytes,
    ) -> tuple[bytes, State]:
        from learning.federated.local_training import inputs
        from learning.federated.losses import targets_of

        single_thread()
        labels_B = targets_of(self.world.task.labels[samples])
        texts = inputs(self.tokens(backbone, samples), range(len(samples)))
        targets = self.models[backbone].targets(*texts, labels_B)
        h_BTD = unpacked_vectors(data, ran.mask_BT, self.by, self.width_of(backbone))
        head = self.parts[backbone][2]
        batch = (h_BTD, ran.mask_BT, targets, dropout, texts[2])
        back_BTD, gradients = head_gradients(held, head, *batch)
        return packed_vectors(back_BTD, ran.mask_BT, self.by), gradients

    def body_back(self, sent: Sent, held: Held, data: Learned) -> tuple[Learned, Held]:
        """Begin a server update; the gradient of the embeddings goes down."""
        return self.step_of(self._back_through_body, Taken(sent.ran), held, data)

    def _back_through_body(self, ran: Ran, held: Held, data: bytes) -> tuple:
        single_thread()
        gradient_BTD = unpacked_vectors(data, ran.mask_BT, self.by, ran.width)
        back_BTD, *after = server_update(self.optimiser, held, ran.passed, gradient_BTD)
        return packed_vectors(back_BTD, ran.mask_BT, self.by), *after


class FedBert(SplitTraining):
    """Split learning with the head on the device."""

    learner: FedBertLearner
    learner_class = FedBertLearner
    keeps_on_device = DATA_KINDS

    class Config(SplitSettings):
        """Settings of FedBert; the defaults are its fine-tuning of MRPC."""

        kind: Literal["fedbert"]
        rounds: int = Field(10, ge=1)
        learning_rate: float = Field(1e-5, gt=0)
        body: Literal["parallel", "sequential"] = "parallel"
        """A body for each client, averaged every round, or one body that serves clients in turn."""

    def __init__(self, config: Config, world: World) -> None:
        parts = {
            name: (
                part_architecture(spec, 0, embeds=True),
                part_architecture(spec, world.costing.depths()[name]),
                part_architecture(
                    spec, None, head=True, classes=world.task.classes, head_kind=config.head
                ),
            )
            for name, spec in world.costing.charged.items()
        }
        sizes = (8, 8, 16)  # of what full training has none of
        peft = ("full", config.readout, *sizes, config.head)
        super().__init__(
            config, world, parts, config.body == "parallel", config.learning_rate, 0, *peft
        )

    def batch(
        self, device: Device, task: ClientTask, samples: np.ndarray, seed: int, slot: list
    ) -> Generator[Any, Any, Any]:
        """Embeddings up, body, output down, loss on the device, gradient up, body, gradient down,
        embeddings.
        """
        charge, name, work = self.charging, device.backbone, self.learner.work
        embed = self.learner.embed
        first = charge.with_encoding(charge.forward(device, samples, 0), device, samples, 0)
        sent: Any = yield from device.compute(work(first, embed, name, samples, slot[0], seed))
        embedded = charge.states(device, samples, 0, 0)
        held = Contents(embedded, Item("length", 4 * len(samples)))
        up = yield from self.exchange(device, task, samples, held, sent and sent.data)
        ahead = charge.forward(device, samples, 1)
        body = (self.learner.body, name, len(samples), seed)
        out = yield from self.served(device, task, up, ahead, *body)
        depth = self.world.costing.depths()[name]
        output = charge.states(device, samples, 1, depth)
        yield from device.download(Contents(output))
        both = charge.forward(device, samples, 2) + charge.backward(device, samples, 2)
        both = charge.with_encoding(both, device, samples, 1)
        loss = work(both, self.learner.loss, name, samples, seed, slot[0], sent, out and out.data)
        made: Any = (yield from device.compute(loss)) or (None, None)
        gradient, head = made
        up = yield from self.exchange(
            device, task, samples, only("gradient", output.nbytes), gradient
        )
        back = charge.backward(device, samples, 1)
        gradient = yield from self.trained(device, task, up, back, self.learner.body_back, out)
        yield from device.download(only("gradient", embedded.nbytes))
        last = charge.backward(device, samples, 0)
        finish = work(last, self.learner.finish, client_update, slot, sent, gradient, head)
        return (yield from device.compute(finish))
