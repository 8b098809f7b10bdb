"""What a method may ask: the seam between methods and the world that a scenario describes.

Methods, learners, devices and the server are written against `World`; `sim.simulation.Simulation`
is the world that runs on a simulated clock, `sim.validate.worlds` has those that run on the wall's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import simpy

from learning.cost.costs import Architecture, Cost

if TYPE_CHECKING:
    from devices.fleet import Member
    from learning.backbones.catalogue import BackboneSpec
    from learning.backbones.tokens import Tokens
    from learning.data.texts import TextDataset
    from learning.metrics import Score
    from sim.kernel.device import Device
    from sim.kernel.host import Host
    from sim.kernel.learned import Learned
    from sim.kernel.learner import Learner, Part
    from sim.kernel.ledger import Ledger
    from sim.kernel.recorder import Recorder
    from sim.kernel.server import Server
    from sim.kernel.streams import Streams
    from sim.kernel.tally import Tally
    from sim.kernel.work import Process


@dataclass
class Ended:
    """How a run ended: why, at which virtual time, and when the target was reached (with the totals
    then).
    """

    reason: str = "running"
    at_s: float = 0.0
    target: dict[str, float] = field(default_factory=dict)


class LearningTask(Protocol):
    """The texts of the fleet: who holds which, and which are for testing."""

    @property
    def labels(self) -> np.ndarray:
        """[N] class numbers, or ratings."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the class numbers."""

    @property
    def test(self) -> np.ndarray:
        """Sample numbers to test on."""

    @property
    def held_out(self) -> np.ndarray:
        """Sample numbers of all parts that are looked at."""

    @property
    def parts_held_out(self) -> list[Part]:
        """The parts that are looked at."""

    def texts_of(self, part: Part) -> np.ndarray:
        """Sample numbers of a part that is looked at."""

    def score(
        self, part: Part, predictions_NC: np.ndarray, loss: str = "cross-entropy"
    ) -> Score | None:
        """What predictions for the texts of a part are worth; None where not all are finite."""

    @property
    def has_responses(self) -> bool:
        """Whether what is learned is what a response's next token is."""

    def response_lengths(self, spec: BackboneSpec, samples: np.ndarray) -> np.ndarray:
        """Tokens of each sample's response that are to be said, shape [n]."""

    @property
    def has_ratings(self) -> bool:
        """Whether labels are ratings, rather than class numbers."""

    @property
    def public(self) -> np.ndarray:
        """Sample numbers that the server has with their labels, and no device has."""

    @property
    def label_texts(self) -> Mapping[str, str]:
        """Class name -> a sentence about it; empty where nobody says any."""

    @property
    def template(self) -> str | None:
        """What backbones read each text in, {text}; None: by itself."""

    @property
    def label_words(self) -> Mapping[str, str]:
        """Class name -> the word that a language model says for it; empty where nobody says any."""

    @property
    def parts(self) -> list[np.ndarray]:
        """Sample numbers that each device holds."""

    @property
    def texts(self) -> TextDataset | None:
        """None where the data are known by their size alone."""

    @property
    def fixed_tokens(self) -> int | None:
        """Every text's length where the data are known by their size alone."""

    @property
    def max_tokens(self) -> int:
        """The longest that a text may be; the rest is cut off."""

    @property
    def classes(self) -> int:
        """The number of classes; 1 where there are ratings, 0 where there are responses."""

    def said(self, prediction: str) -> list[str]:
        """What is said of the classes for a kind of own prediction."""

    def said_tokens(self, spec: BackboneSpec, prediction: str) -> Tokens:
        """The same as this backbone's tokens."""

    def said_lengths(self, spec: BackboneSpec, prediction: str) -> np.ndarray:
        """Tokens of these, shape [said]."""

    def tokens(self, spec: BackboneSpec, samples: np.ndarray) -> Tokens:
        """The samples as this backbone's tokens."""

    def lengths(self, spec: BackboneSpec, samples: np.ndarray) -> np.ndarray:
        """Tokens of each sample, shape [n]."""


class Costing(Protocol):
    """What the clock charges for each backbone of the fleet."""

    @property
    def learned(self) -> dict[str, BackboneSpec]:
        """What really learns, by the backbone's name in the scenario."""

    @property
    def charged(self) -> dict[str, BackboneSpec]:
        """What time, bytes and memory are charged as (`cost_as`)."""

    @property
    def architectures(self) -> dict[str, Architecture]:
        """What is charged for each backbone, counted."""

    @property
    def precision(self) -> dict[str, str]:
        """Number format of each group of the fleet."""

    @property
    def fixed_tokens(self) -> int | None:
        """The length that every text is charged at; None: its own."""

    def depths(self) -> dict[str, int]:
        """Layers of each backbone as charged."""

    def widths(self) -> dict[str, int]:
        """Hidden size of each backbone as charged."""

    def forward(self, member: Member, lengths: np.ndarray) -> Cost:
        """One forward pass over texts of these lengths, padded to the longest."""

    def next_word(self, member: Member, texts: int, words: int) -> Cost:
        """What so many words' logits cost after a forward pass over these texts."""

    def weight_bytes(self, member: Member) -> int:
        """Bytes of the member's backbone in its memory."""

    def shares(self, member: Member) -> tuple[float, float]:
        """Of a pass counted in float32, the shares that the bytes of its weights and of its
        activations have in the member's precision.
        """


class Links(Protocol):
    """How bytes get from a device to the server and back."""

    def upload(self, device_id: str, nbytes: float) -> simpy.Event:
        """Happens when the last byte has landed."""

    def download(self, device_id: str, nbytes: float) -> simpy.Event:
        """Happens when the last byte has landed."""

    def alone_s(self, device_id: str, nbytes: float) -> float:
        """Nominal seconds there and back while nobody else sends."""

    def abort(self, event: simpy.Event) -> float:
        """End a transfer; bytes that had passed."""

    def progress(self, event: simpy.Event) -> tuple[float, float, float]:
        """Bytes that have passed, the most that pass a second as things are, until when, s."""


class World(Protocol):
    """One run of one scenario, as methods, learners, devices and the server know it."""

    dry: bool
    """Whether nothing learns."""
    seed: int
    streams: Streams
    """All randomness, by name."""
    server: Server
    host: Host
    """Where learning is computed, and kept for a resumed run."""
    recorder: Recorder
    ledger: Ledger
    """Who has seen what."""
    tally: Tally
    ended: Ended
    target_reached: bool
    updates: int
    looked_after: int
    """After how many updates the held-out texts were last looked at."""
    store_folder: Path
    """Where activations of frozen backbones are kept between runs."""

    @property
    def env(self) -> simpy.Environment:
        """The clock; `env.now` is the virtual time, s."""

    @property
    def task(self) -> LearningTask:
        """The texts: who holds which."""

    @property
    def costing(self) -> Costing:
        """What the clock charges."""

    @property
    def network(self) -> Links:
        """How bytes travel."""

    @property
    def devices(self) -> Sequence[Device]:
        """The fleet."""

    @property
    def devices_at_work(self) -> int:
        """How many devices have not ended."""

    def present_devices(self) -> list[Device]:
        """Devices that have joined, could take part and have not left for good."""

    def lengths(self, device: Device, samples: np.ndarray) -> np.ndarray:
        """Tokens of the samples for the device's backbone, shape [n]."""

    def response_lengths(self, device: Device, samples: np.ndarray) -> np.ndarray:
        """Of these, the tokens that are to be said, where texts have responses, shape [n]."""

    def start(self, actor: Device | None, generator: Process) -> simpy.Process:
        """Let an actor (None: the server) do something beside what it does."""

    def interrupt(self, devices: Iterable[Device], reason: str) -> None:
        """Break into what these devices are doing; their spans end now, with the reason."""

    def remark(self, *texts: str) -> None:
        """Note, once, sentences that whoever reads the result has to know."""

    def after_update(
        self,
        learner: Learner,
        loss: Learned[float] | None,
        records: int,
        first: bool = False,
        last: bool = False,
    ) -> None:
        """Count a server update; every so often, look at the held-out texts."""

    def note_diverged(self, device: Device | None, what: str) -> None:
        """Note that what came (None: of the server's own) is not finite and is in no update."""

    def end_training(self, learner: Learner) -> None:
        """No more updates: a last look, and whoever is still at work is told to stop."""

    def on_prepare(self, backbone: str, done: int, total: int) -> None:
        """Told of progress while a learner prepares what the run will need."""
