"""What Fed MobiLLM and its variants share: how a side network reads a backbone, how it is trained,
and its shape.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, ClassVar, Literal

import numpy as np
import simpy
from pydantic import Field

from learning.backbones.language_head import require_language_model
from learning.backbones.prompts import first_tokens
from learning.codecs.chain import chain_of
from learning.cost.costs import Cost
from learning.side.config import SideNetworkSettings, SideShape, shape_for
from learning.side.heads import fitting, head_bytes
from learning.side.prediction_difference import SAID_FIRST, VERBALISERS
from learning.side.taps import Taps
from sim.kernel.device import Device, Payload
from sim.kernel.learner import learner_for
from sim.kernel.ledger import DATA_KINDS, Contents, Item, only
from sim.kernel.server import Server
from sim.kernel.work import Work
from sim.kernel.world import World
from sim.methods.side_tuning import sending
from sim.methods.side_tuning.contents import uploaded
from sim.methods.side_tuning.learner import SideTuningLearner
from sim.methods.side_tuning.passes import class_pass, device_pass, server_pass
from sim.methods.side_tuning.protection import (
    axes_bytes,
    axes_cost,
    device_cost,
    outputs_of,
    require_protection,
    sent_records,
    text_privacy,
    wanted_axes,
)
from sim.methods.side_tuning.replay_cache import ReplayCache
from sim.methods.side_tuning.shipping import at_server, precision_of, prediction_bytes
from sim.methods.side_tuning.tap_choice import (
    LAYER_BYTES,
    asking_rule,
    choice_cost,
    require_texts_to_choose_by,
    sampled,
)
from sim.methods.side_tuning.updates import closed_form
from sim.scenario.settings import OnlyFor, RenamedSettings

Unfitted = Literal[
    "uniform",
    "label-names",
    "class-texts",
    "verbaliser",
    "calibrated-verbaliser",
    "random-head",
]
"""Sources of a backbone's own prediction that need no head fitted to anybody's texts."""


class SideTuningSettings(RenamedSettings):
    """A side network over the sampled layers of a backbone, trained by AdamW."""

    only_for: ClassVar[OnlyFor] = dict.fromkeys(  # of each method those that it has
        ("learning_rate", "weight_decay", "replay", "update_share_on_arrival", "epochs"),
        ("adapters (`side_network.adapters` above 0)", lambda s: s.side_network.has_adapters),
    )
    takes_texts_as_they_come: ClassVar[bool] = True
    takes_texts_in_order: ClassVar[bool] = True
    taps: Taps = "interval"
    """Sampled layers: as many as the shallowest backbone has (average interval; all, where there is
    one backbone), so many, a list of layers; or those that the public texts (`task.public`) choose:
    `importance`, or a rule of `by`, `layers` or `bytes_a_text`, and `align`.
    """
    readout: Literal["first", "last", "mean"] = "mean"
    """The one vector a layer: first token, last token, or the mean (measured far better for
    sentence encoders).
    """
    backbone_prediction: Literal[Unfitted, "public-head", "own-head"] = "uniform"
    """The backbone's own prediction y_b, which the side network adds to: nothing; likeness to the
    classes' names, or to a sentence about each (`task.label_texts`); which class's word
    (`task.label_words`) a decoder says next, as it is or calibrated; a head drawn at random, fitted
    to `task.public` at the server, or by each device to its own texts.
    """
    loss: Literal["squared-error", "cross-entropy"] = "squared-error"
    """Squared error needs the prediction difference alone; cross-entropy NEEDS THE LABELS where the
    side network trains.
    """
    side_network: SideNetworkSettings = SideNetworkSettings()
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(1.0, ge=0)
    device_batch: int = Field(8, ge=1)
    """Samples of one forward pass and one upload."""

    @property
    def keeps_records(self) -> bool:
        """Whether the server keeps what it has learned from."""
        return True

    def unfit(self) -> Iterator[tuple[str, str]]:
        """What of the side network cannot be in this method: (field, what is wrong)."""
        return self.side_network.unfit(self.keeps_records, self.loss)


def require_updates(config: Any, devices: Iterable[Device]) -> None:
    """Raise ValueError where all samples of the devices together grant not one update of the
    server.
    """
    samples = sum(len(device.samples) for device in devices)
    if config.side_network.has_adapters and config.replay * samples < config.server_batch:
        raise ValueError(
            f"method.replay: no update is ever granted, as replay {config.replay:g} x {samples} "
            "samples is less than the "
            f"{config.server_batch} of one update (`server_batch`)"
        )


def settled(config: Any) -> Any:
    """A method's settings with those of its side network settled. Raises ValueError for a skip that
    cannot be solved there.
    """
    given = config.side_network
    if not isinstance(given, SideNetworkSettings):
        return config
    for name, what in config.unfit():
        raise ValueError(f"method.side_network.{name}: {what}")
    side_network = given.settled(config.keeps_records, config.loss)
    return config.model_copy(update={"side_network": side_network})


def require_words(config: Any, world: World) -> None:
    """Raise ValueError where the task, or a backbone, has not got what its own prediction is made
    from.
    """
    kind, task = config.backbone_prediction, world.task
    if kind == "class-texts" and task.texts is not None and not task.label_texts:
        raise ValueError("class-texts needs `task.label_texts`, a sentence about each class")
    if kind in VERBALISERS and task.texts is not None and not (task.template and task.label_words):
        raise ValueError(f"{kind} needs `task.template` and `task.label_words`, a word a class")
    for spec in world.costing.learned.values() if kind in VERBALISERS else ():
        require_language_model(spec)
        if task.texts is not None:
            first_tokens(spec, task.template or "", task.label_words)
    if kind == "public-head" and not len(task.public):
        raise ValueError("public-head needs `task.public: N`, so many labelled texts at the server")


def shape_over(settings: SideTuningSettings, world: World, backbones: Iterable[str]) -> SideShape:
    """The side network over these backbones of the fleet, as it is charged; a block for each
    sampled layer.
    """
    depths, widths = world.costing.depths(), world.costing.widths()
    layers = sampled(settings, world, {name: depths[name] for name in backbones})
    blocks = len(next(iter(layers.values())))
    return shape_for(
        settings.side_network,
        blocks,
        sending.sent_widths(settings, {name: widths[name] for name in layers}),
        outputs_of(settings, world.task.classes),
    )


class SideTuning:
    """Devices pass over their texts with frozen backbones and upload what a side network needs; the
    server trains it on records from a cache, while they come and after.

    A method adds `device`, and what of `server` differs, and names its updates (`updates.py`).
    """

    Learner: ClassVar[type] = SideTuningLearner
    learner: SideTuningLearner
    client_update: ClassVar[Callable[..., Any]]
    """(activations, labels, the backbone's own predictions, loss) -> vectors and targets."""
    server_update: ClassVar[Callable[..., Any]]
    """(trainer of the side network, records) -> trainer and loss."""

    def __init__(self, config: Any, world: World) -> None:
        self.config, self.world = config, world
        self.config = config = settled(config)
        if config.keeps_records:  # which grant updates
            require_updates(config, world.devices)
        require_words(config, world)
        if chain_of(config.wire).number != "float32":
            sending.require_ratings_of_half(config, world, ", or say `wire: float32`")
        sending.require_texts_for_axes(config, world)
        sending.require_learned_widths(config, world)
        sending.note_uncoded(config, world)
        self.public_read = world.env.event()
        require_protection(config, world)
        outputs = outputs_of(config, world.task.classes)
        self.target_width = outputs * (2 if config.loss == "cross-entropy" else 1)
        self.tap_rule = asking_rule(config)
        self.shape = self.new_shape()
        self.widths = {name: world.costing.widths()[name] for name in self.shape.backbone_widths}
        require_texts_to_choose_by(config, world, self.widths)
        self.learner = self.new_learner()
        self.cache = ReplayCache(world.streams.rng("server/replay"))
        self.updates, self.is_shipped = 0, False
        self.step_costs: dict[frozenset[tuple[str, int]], Cost] = {}
        self.fitted: Counter[str] = Counter()  # records that a skip was last solved for
        self.fresh: list[int] = []  # numbers of payloads that came since the last update
        if self.reads_public:
            reads_labels = self.tap_rule or config.backbone_prediction == "public-head"
            for kind in ("text", *(["label"] if reads_labels else [])):
                world.ledger.hold("server", kind, len(world.task.public))
        # by uploads, and of passes, alike
        self.held, self.protected = functools.cache(self._held), functools.cache(self._protected)
        self.precision = precision_of(getattr(config, "ship_side_network", False))  # on its way
        self.side_network_bytes = functools.cache(self._side_network_bytes)  # of a backbone

    @property
    def targets(self) -> tuple[str, ...]:
        """The kinds of what goes along with activations."""
        is_difference = self.config.loss == "squared-error"
        return ("prediction difference",) if is_difference else ("label", "prediction")

    @property
    def keeps_on_device(self) -> frozenset[str]:
        """Texts, and labels where the loss can do without them."""
        return DATA_KINDS - {*self.targets}

    def new_shape(self) -> SideShape:
        """The side network over all backbones of the fleet."""
        return shape_over(self.config, self.world, self.world.costing.learned)

    def new_learner(self) -> SideTuningLearner:
        """What learns."""
        return learner_for(self.world, self.Learner, self.config)

    def peak_bytes(self, device: Device) -> int:
        """Of a forward pass over the device's longest batch, with the backbone's weights."""
        lengths = self.world.lengths(device, device.samples)
        longest = np.full(self.config.device_batch, lengths.max(initial=1))
        cost = device_pass(self.config, self.world, device, longest)
        peak = self.protected(device.backbone, cost, len(longest)).peak_bytes
        if self.config.backbone_prediction == "own-head":
            peak = max(peak, self.fitting_own(device).cost.peak_bytes)
        return device.held_bytes(peak)

    # --- the backbone's own prediction

    def begin(self, device: Device) -> Generator:
        """Arrive, and get what the backbone's own prediction needs, a pass over what is said of the
        classes or the server's head, and the layers to sample, where public texts choose them.
        """
        yield from device.arrive()
        if self.config.backbone_prediction in SAID_FIRST:
            yield from device.compute(Work(class_pass(self.config, self.world, device)))
        if self.reads_public:
            yield from device.until_event(self.public_read)
            choice = LAYER_BYTES * self.shape.blocks if self.tap_rule else 0
            width, head = self.widths[device.backbone], 0
            if self.config.backbone_prediction == "public-head":
                head = head_bytes(width, self.world.task.classes)
            axes = axes_bytes(self.config, self.shape, device.backbone)
            axes += sending.projection_bytes(self.config, self.shape.vectors, width)
            yield from device.download(
                Contents(
                    Item("layer choice", choice),
                    Item("head", head),
                    Item("public axes", axes),
                )
            )

    @property
    def reads_public(self) -> bool:
        """Whether the server reads the public texts: to fit heads, choose layers, or for axes."""
        return (
            self.config.backbone_prediction == "public-head"
            or self.tap_rule is not None
            or wanted_axes(self.config) > 0
            or sending.wants_public_axes(self.config)
        )

    def read_public(self, server: Server) -> Generator:
        """At the server, before anything else: every backbone passes over the public texts, gets a
        head and, when all have passed, its layers.
        """
        if self.reads_public:
            task, specs = self.world.task, self.world.costing.learned
            for name, width in self.widths.items():
                lengths = task.lengths(specs[name], task.public)
                cost = server_pass(self.config, self.world, name, lengths)
                yield from server.compute(Work(cost), kind="forward")
                if self.config.backbone_prediction == "public-head":
                    cost = fitting(len(task.public), width, task.classes)
                    yield from server.compute(Work(cost))
            if self.tap_rule:
                cost = choice_cost(self.tap_rule, self.shape.blocks, self.world, self.widths)
                yield from server.compute(Work(cost))
            for width in self.widths.values() if sending.wants_public_axes(self.config) else ():
                cost = sending.projection_cost(
                    self.config, self.shape.vectors, width, len(task.public)
                )
                yield from server.compute(Work(cost))
            if wanted_axes(self.config):
                for shape in self.shapes_apart:
                    cost = axes_cost(shape, len(task.public))
                    yield from server.compute(Work(cost))
            self.public_read.succeed()

    def fitting_own(self, device: Device) -> Work:
        """A device's own head, on the last of the vectors that it has computed; all of them stay in
        memory until they are sent.
        """
        n, width = len(device.samples), self.widths[device.backbone]
        cost = fitting(n, width, self.world.task.classes)
        kept = 4 * n * self.shape.vectors * width
        return Work(dataclasses.replace(cost, peak_bytes=cost.peak_bytes + kept))

    def delivery_bytes(self, device: Device) -> int:
        """The side network with what belongs to the device's backbone."""
        return self.side_network_bytes(device.backbone)

    def _side_network_bytes(self, backbone: str) -> int:
        return self.shape_of(backbone).shipped_bytes(backbone, self.precision)

    def findings(self) -> dict[str, Any]:
        """What prediction at the server would cost and, where the side network was sent, what it is
        worth as it arrived: for the summary.
        """
        devices = self.world.devices
        sends_matrices = getattr(self.config, "shortcut", "pivot") == "matrix"  # but to predict
        wire = "float16" if sends_matrices else self.config.wire
        bytes_of = {
            backbone: prediction_bytes(self.shape_of(backbone), width, wire)
            for backbone, width in self.widths.items()
        }
        sizes = [self.delivery_bytes(device) for device in devices]
        found: dict[str, Any] = {
            "prediction_at_server": at_server([bytes_of[d.backbone] for d in devices], sizes),
            **text_privacy(self.config),
        }
        if self.tap_rule and not self.world.dry:
            found["taps"] = self.learner.layers
        if self.is_shipped and not self.world.dry:
            there = self.learner.delivered(self.precision).items()
            scores = {name: score and score["value"] for name, score in there}
            each = [scores[device.backbone] for device in devices]
            known = [score for score in each if score is not None]
            found["delivered"] = {
                "precision": self.precision,
                "final": statistics.fmean(known) if len(known) == len(each) else None,
                "by_backbone": scores,
                "bytes": statistics.fmean(sizes),
            }
        return found

    def pass_over_data(self, device: Device) -> Generator:
        """Forward passes over all batches, each uploaded as soon as it is computed; after the last,
        where the device fits a head of its own to them first.
        """
        size = self.config.device_batch
        waiting: tuple[tuple[np.ndarray, Any], ...] = ()
        for start in range(0, len(device.samples), size):  # lighter than a generator of each device
            batch = device.batch(start, size)
            yield from device.until(batch.ready_s)
            activations = yield from device.compute(self.forward(device, batch.samples))
            if self.config.backbone_prediction == "own-head":
                waiting += ((batch.samples, activations),)
            else:
                yield from device.send(self.payload(device, batch.samples, activations))
        if waiting:
            yield from device.compute(self.fitting_own(device))
        for samples, activations in waiting:
            yield from device.send(self.payload(device, samples, activations))

    def forward(self, device: Device, samples: np.ndarray) -> Work:
        """The frozen backbone over a batch: all that a device computes."""
        lengths = self.world.lengths(device, samples)
        cost = device_pass(self.config, self.world, device, lengths)
        cost = self.protected(device.backbone, cost, len(samples))
        return self.learner.work(cost, self.learner.forward, device.backbone, samples)

    def _protected(self, backbone: str, cost: Cost, records: int) -> Cost:
        """A pass with what encodes and protects so many records of it; axes and the secret are held
        beside it.
        """
        shape, classes = self.shape_of(backbone), self.world.task.classes
        records = sent_records(self.config, records)
        more = device_cost(self.config, shape, backbone, records, classes)
        width = self.widths[backbone]
        more += sending.sending_cost(self.config, shape.vectors, width, records)
        return dataclasses.replace(cost + more, peak_bytes=cost.peak_bytes + more.peak_bytes)

    def payload(self, device: Device, samples: np.ndarray, activations: Any) -> Payload:
        """Sampled activations and prediction differences, encoded; charged by the exact size of the
        charged shapes.
        """
        data = self.learner.encode(self.client_update, device.backbone, samples, activations)
        held = self.held(device.backbone, len(samples))
        if data and chain_of(self.config.wire).coder:  # whose bytes no shape tells
            held = self._held(device.backbone, len(samples), data)
        return device.payload(samples, held, data)

    def _held(self, backbone: str, records: int, data: bytes = b"") -> Contents:
        """What an upload of so many texts holds; `data` tells what entropy coding made of it."""
        records = sent_records(self.config, records)
        sizes = sending.upload_sizes(self.config, self.shape, backbone, records, self.target_width)
        if data:
            learned = self.learner.of(backbone).shape
            own = (learned.vectors, learned.backbone_widths[backbone], self.target_width)
            sizes = sending.coded_sizes(sizes, self.config, data, (records, *own))
        return uploaded(sizes, self.sent_layers(backbone), self.config.readout, self.targets)

    def sent_layers(self, backbone: str) -> list[int]:
        """Of which layers a device uploads vectors; none are named where texts choose them in a
        run that has none.
        """
        first = [0] if self.shape.start == "embedding" else []
        if self.tap_rule:
            return [] if self.world.dry else self.learner.of(backbone).vectors[backbone]
        return [*first, *sampled(self.config, self.world, self.world.costing.depths())[backbone]]

    # --- the server

    def server(self, server: Server) -> Generator:
        """Update whenever enough samples have come for another update; end with the last granted
        one, or at the target.
        """
        yield from self.read_public(server)
        while not self.world.target_reached:
            if (yield from self.take_arrivals(server)):
                continue
            share = 1.0 if self.is_complete else self.config.update_share_on_arrival
            if (update := self.next_fit() or self.next_update(share)) is not None:
                flows, self.fresh = self.fresh, []
                loss = yield from server.compute(update, flows)
                self.world.after_update(self.learner, loss, self.records)
            elif not self.is_complete:
                yield from server.wait()
            else:
                break
        yield from self.end(server)

    @property
    def is_complete(self) -> bool:
        """Whether nothing more will come, so that all granted updates may be spent."""
        return not self.world.devices_at_work

    @property
    def records(self) -> int:
        """How many records the server has."""
        return len(self.cache)

    def take_arrivals(self, server: Server) -> Generator[simpy.Event, Any, bool]:
        """Put what has landed into the cache; True for who wants to look again before an update."""
        for payload in server.take():
            self.ingest(payload)
            self.fresh.append(payload.number)
        return False
        yield  # a generator, as those of methods that compute on what has landed

    def ingest(self, payload: Payload) -> None:
        """Into the cache, at random positions."""
        self.keep(payload.sender, payload.sender.backbone, payload.data, payload.samples)

    def keep(self, sender: Device | None, backbone: str, data: Any, samples: np.ndarray) -> bool:
        """The records that a backbone's batch of texts has become, unless they are not finite;
        whether they are kept.
        """
        count = sent_records(self.config, len(samples))
        if is_kept := self.learner.ingest(backbone, data, count):
            self.cache_of(backbone).insert(backbone, count)
        else:
            self.world.note_diverged(sender, "activations")
        return is_kept

    def cache_of(self, backbone: str) -> ReplayCache:
        """Where a backbone's records go."""
        return self.cache

    def shape_of(self, backbone: str) -> SideShape:
        """The side network that a backbone has."""
        return self.shape

    @property
    def shapes_apart(self) -> list[SideShape]:
        """Those of all side networks that there are."""
        return [self.shape]

    def next_update(self, share: float) -> Work | None:
        """The next update, if such a share of what the records grant allows for it."""
        granted = share * self.config.replay * len(self.cache)
        if granted < (self.updates + 1) * self.config.server_batch:
            return None
        if not self.shape.has_adapters:
            return None
        self.updates += 1
        return self.update(self.cache.draw(self.config.server_batch))

    def next_fit(self) -> Work | None:
        """Solving the side network's skip anew, if there is one and enough records have come."""
        if not self.is_fit_due("", len(self.cache)):
            return None
        counts = self.cache.count_by_backbone(list(range(len(self.cache))))
        cost = self.shape.fitting(counts, len(self.config.side_network.penalties))
        return self.learner.work(cost, self.learner.fit, closed_form)

    def is_fit_due(self, name: str, records: int) -> bool:
        """Whether a skip is to be solved: for half as many records again as the last time, so that
        all solving costs a few times the last, and for all of them at the end. If so, counts it as
        done.
        """
        if self.config.side_network.skip == "none":
            return False
        known = self.fitted[name]
        due = known + 1 if self.is_complete else max(self.config.server_batch, 1.5 * known)
        if records < due:
            return False
        self.fitted[name] = records
        return True

    def update(self, records: list[int]) -> Work:
        """One AdamW update of the side network and the projections on the drawn records."""
        counts = self.cache.count_by_backbone(records)
        alike = frozenset(counts.items())
        if (cost := self.step_costs.get(alike)) is None:
            cost = self.step_costs[alike] = self.shape.training_step(counts)
        return self.learner.work(cost, self.learner.step, self.server_update, records)

    def end(self, server: Server) -> Generator:
        """The training is over; send every device what it needs to use the side network."""
        self.world.end_training(self.learner)
        if self.config.ship_side_network:
            devices = self.world.present_devices()
            yield from server.deliver(
                devices, lambda device: only("side network", self.delivery_bytes(device))
            )
            self.is_shipped = bool(devices)  # and the study has not ended meanwhile
