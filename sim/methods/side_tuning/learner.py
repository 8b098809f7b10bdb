"""The learning behind Fed MobiLLM's clock: activations of real backbones, and the side network
trained on them.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from learning.backbones import catalogue
from learning.backbones.prompts import first_tokens
from learning.codecs.chain import Chain, chain_of
from learning.codecs.projection import FILE as PROJECTION_FILE
from learning.side import heads
from learning.side.config import shape_for
from learning.side.prediction_difference import SAID_FIRST, VERBALISERS, backbone_prediction
from learning.side.protection import FILE as SECRET_FILE
from sim.kernel.learned import Learned, Taken
from sim.kernel.learner import Part, RealLearner
from sim.methods.side_tuning.protection import outputs_of, protection_of, wanted_axes
from sim.methods.side_tuning.sending import sent_widths, wants_public_axes
from sim.methods.side_tuning.tap_choice import asking_rule, chosen, sampled

if TYPE_CHECKING:
    from torch import Tensor

    from learning.backbones.tokens import Tokens
    from learning.codecs.projection import Projection
    from learning.metrics import Score
    from learning.side.protection import PublicAxes, Secret
    from learning.side.readouts import Pooled
    from learning.side.tuning import HeldOut, SideNetworkTrainer
    from sim.kernel.world import World
    from sim.methods.side_tuning.protecting import Protecting

MOST_HEADS = 20  # of devices whose own head is judged, a backbone
Record = tuple["Tensor", "Tensor"]  # vectors [V, d_m] and target


class SideTuningLearner(RealLearner):
    """Real activations of the packaged backbones, and a real side network trained on what was
    uploaded.

    `backbones` are those that the side network serves, by default all of the fleet.
    """

    def __init__(self, world: World, config: Any, backbones: Iterable[str] | None = None) -> None:
        self.config, self.world = config, world
        specs = {name: world.costing.learned[name] for name in backbones or world.costing.learned}
        configs = {name: catalogue.config_of(spec) for name, spec in specs.items()}
        depths = {name: catalogue.depth_of(c) for name, c in configs.items()}
        widths = {name: catalogue.width_of(c) for name, c in configs.items()}
        self.layers = sampled(config, world, depths)
        blocks = len(next(iter(self.layers.values())))
        outputs = outputs_of(config, world.task.classes)
        self.shape = shape_for(config.side_network, blocks, sent_widths(config, widths), outputs)
        self._widths = widths
        self._specs = specs
        self._seed = world.streams.seed64("server/side-network") % 2**31
        self.records: list[tuple[str, Learned, int] | None] = []  # backbone, batch and row in it

    def of(self, backbone: str) -> SideTuningLearner:
        """What learns from this backbone's records."""
        return self

    @property
    def predicts_untrained(self) -> bool:
        """Whether the backbones' own prediction, which an untrained side network leaves as it is,
        is one.
        """
        return self.config.backbone_prediction not in ("uniform", "random-head")

    @property
    def vectors(self) -> dict[str, list[int]]:
        """Which layers' vectors every backbone uploads: the sampled ones, after the embedding where
        the side state starts from it.
        """
        first = [0] if self.shape.start == "embedding" else []
        return {name: [*first, *layers] for name, layers in self.layers.items()}

    # --- what a device computes

    def prepare(self) -> None:
        """All activations that this run can need, from the store or computed now in large
        length-sorted batches.
        """
        from learning.side.activation_store import ActivationStore
        from learning.side.readouts import pooled_activations

        task, store = self.world.task, ActivationStore(self.world.store_folder)
        own, rule = self.config.backbone_prediction, asking_rule(self.config)
        self._row: dict[str, dict[int, int]] = {}
        self._readouts: dict[str, Pooled] = {}
        self._classes: dict[str, np.ndarray] = {}
        self._logits: dict[str, np.ndarray] = {}
        deepest_first = sorted(
            self._specs.items(), key=lambda item: -catalogue.depth_of(catalogue.config_of(item[1]))
        )
        for name, spec in deepest_first:
            asks = rule or own == "public-head" or wanted_axes(self.config)
            asks = asks or wants_public_axes(self.config)
            public = [task.public] if asks else []
            samples = np.unique(np.concatenate([*self._parts_of(name), task.held_out, *public]))
            tokens = task.tokens(spec, samples)
            read_before = [self._specs[other] for other in self._readouts]
            read = functools.partial(
                pooled_activations,
                spec,
                store=store,
                spread=self.world.host.map,
                progress=functools.partial(self.world.on_prepare, name),
                deeper=[other for other in read_before if catalogue.are_cuts_of_one(spec, other)],
            )
            self._readouts[name] = read(tokens, self.config.readout)
            self._row[name] = {int(sample): row for row, sample in enumerate(samples)}
            self._read_classes(name, tokens, read)
        if rule:
            public_vectors = {
                name: self._vectors_of(name, task.public, range(self._readouts[name].vectors))
                for name in self._specs
            }
            first = self.shape.start == "embedding"
            self.layers = chosen(rule, self.shape.blocks, self.world, public_vectors, first)
        self._fit_heads()
        self._held_out = self._of_part("test")
        self._validation = self._of_part("validation")
        known = f"side network of {list(self._specs)}"
        self.tuning = Learned.given(known, self.fresh(self._seed))

    def _read_classes(
        self, backbone: str, tokens: Tokens, read: Callable[[Tokens, str], Pooled]
    ) -> None:
        """What stands for the classes: vectors of what is said of them, or what a verbaliser says
        after each text, [texts, classes], and after what it is calibrated by.
        """
        from learning.backbones.language_head import WordHead

        task, kind = self.world.task, self.config.backbone_prediction
        spec = self._specs[backbone]
        said = task.said_tokens(spec, kind) if kind in SAID_FIRST else None
        if kind in VERBALISERS:
            words = {name: task.label_words[name] for name in task.class_names}
            says = WordHead(spec, first_tokens(spec, task.template or "", words))
            self._logits[backbone] = says(read(tokens, "last").take(layers=[-1])[:, 0])
            if said is not None:
                self._classes[backbone] = says(read(said, "last").take(layers=[-1])[:, 0])
        elif said is not None:
            self._classes[backbone] = read(said, self.config.readout).take(layers=[-1])[:, 0]

    def _parts_of(self, backbone: str) -> list[np.ndarray]:
        """The training texts that this backbone will see."""
        return [device.samples for device in self.world.devices if device.backbone == backbone]

    def forward(self, backbone: str, samples: np.ndarray) -> np.ndarray:
        """The sampled vectors of a batch as they are sent, float32 [n, vectors, width]."""
        values = self._vectors_of(backbone, samples, self.vectors[backbone])
        return self.projected(backbone, values)

    @functools.cached_property
    def projection(self) -> Projection | None:
        """Along which axes vectors are sent; None: as they are."""
        from learning.codecs import projection

        chain, public = chain_of(self.config.wire), self.world.task.public
        if chain.projection is None:
            return None
        if chain.projection == "random":
            rng = self.world.streams.rng("wire/axes")
            return projection.random(chain, self._widths, self.shape.vectors, rng)
        vectors = {n: self._vectors_of(n, public, v) for n, v in self.vectors.items()}
        return projection.principal(chain, vectors)

    def projected(self, backbone: str, x_NVD: np.ndarray) -> np.ndarray:
        """Vectors of a backbone along the axes along which they are sent."""
        return x_NVD if self.projection is None else self.projection.apply(backbone, x_NVD)

    def arrived(self, sent_NVK: np.ndarray) -> np.ndarray:
        """What the server learns from, of vectors that are sent."""
        from learning.codecs.numbers import arrived

        return arrived(sent_NVK, self.arrives_by)

    @property
    def arrives_by(self) -> Chain:
        """How it has been rounded."""
        return chain_of(self.config.wire)

    def unprojected(self, backbone: str, y_NVK: np.ndarray) -> np.ndarray:
        """What a server that knows the axes makes of vectors that are sent."""
        return y_NVK if self.projection is None else self.projection.back(backbone, y_NVK)

    def _own_prediction(self, backbone: str, samples: np.ndarray) -> np.ndarray:
        if self._left_out and int(samples[0]) in self._left_out:  # a device's own training texts
            return np.stack([self._left_out[int(sample)] for sample in samples])
        rows = [self._row[backbone][int(sample)] for sample in samples]
        return backbone_prediction(
            self.config.backbone_prediction,
            self._last_layer(backbone, samples),
            self.world.task.classes,
            self._classes.get(backbone),
            self._head_stream(backbone),
            self._heads.get(backbone),
            logits_NC=self._logits[backbone][rows] if backbone in self._logits else None,
        )

    def as_server(self, backbone: str, last_layer_ND: np.ndarray) -> np.ndarray | None:
        """The backbone's own prediction as a server that knows it computes it from the last layer,
        [n, C]; None where it would need what stays on devices, or tokens.
        """
        kind = self.config.backbone_prediction
        if kind in VERBALISERS or kind == "own-head":
            return None
        return backbone_prediction(
            kind,
            last_layer_ND,
            self.world.task.classes,
            self._classes.get(backbone),
            self._head_stream(backbone),
            self._heads.get(backbone),
        )

    def _last_layer(self, backbone: str, samples: np.ndarray) -> np.ndarray:
        return self._vectors_of(backbone, samples, [-1])[:, 0]

    def _vectors_of(self, backbone: str, samples: np.ndarray, layers: Sequence[int]) -> np.ndarray:
        """[n, layers, hidden]; layer 0 is the embedding."""
        rows = [self._row[backbone][int(sample)] for sample in samples]
        return self._readouts[backbone].take(rows, layers)

    def _fit_heads(self) -> None:
        """Those of `public-head`, [D + 1, C] a backbone, or of `own-head`, [K, D + 1, C] for K
        of its devices; and what every own text is predicted as without itself.
        """
        self._heads: dict[str, np.ndarray] = {}
        self._left_out: dict[int, np.ndarray] = {}
        kind, task = self.config.backbone_prediction, self.world.task
        for name in self.vectors if kind == "public-head" else ():
            self._heads[name] = self._fitted(name, task.public).weights
        for name in self.vectors if kind == "own-head" else ():
            mine = [device.samples for device in self.world.devices if device.backbone == name]
            fitted = [self._fitted(name, samples) for samples in mine]
            for samples, head in zip(mine, fitted, strict=True):
                self._left_out |= dict(zip(map(int, samples), head.left_out, strict=True))
            shown = self.world.streams.rng("backbone/heads", name).permutation(len(fitted))
            self._heads[name] = np.stack([fitted[i].weights for i in sorted(shown[:MOST_HEADS])])

    def _fitted(self, backbone: str, samples: np.ndarray) -> heads.Head:
        labels = self.world.task.labels[samples]
        return heads.fit(self._last_layer(backbone, samples), labels, self.world.task.classes)

    def _head_stream(self, backbone: str) -> np.random.Generator:
        """Where a random head is drawn from: the same head for every device of a backbone, and
        again for inference.
        """
        return self.world.streams.rng("backbone/head", backbone)

    def encode(
        self,
        update: Callable[..., Any],
        backbone: str,
        samples: np.ndarray,
        activations: np.ndarray,
    ) -> bytes:
        """The payload's bytes, of what a client update makes of activations, labels and the
        backbone's own prediction: `update(activations, labels, prediction, loss)`.

        None at all where the activations, or what protects them, are not finite: most number
        formats cannot say so.
        """
        from learning.side.activations import Activations, encode

        if not np.isfinite(activations).all():
            return b""
        labels = self.world.task.labels[samples]
        y_b = self._own_prediction(backbone, samples)
        values, targets = update(activations, labels, y_b, self.config.loss)
        if self._protecting is not None:
            values, targets, samples = self._protecting.vectors(backbone, values, targets, samples)
        if not (np.isfinite(values).all() and np.isfinite(targets).all()):
            return b""
        return encode(Activations(values, targets, samples), self.config.wire)

    # --- what a device does so that the server learns less

    @functools.cached_property
    def public_axes(self) -> PublicAxes | None:
        """What the server makes of the public texts for the devices' offset; None without one."""
        from learning.side.protection import public_axes

        public = self.world.task.public
        if not (count := wanted_axes(self.config)):
            return None
        return public_axes({name: self.forward(name, public) for name in self.vectors}, count)

    @functools.cached_property
    def secret(self) -> Secret | None:
        """What the devices share and the server has not; None where nothing is protected."""
        from learning.side.protection import draw_secret

        c = protection_of(self.config)
        if c is None:
            return None
        widths = {*self.shape.backbone_widths.values()} if c.rotate else ()
        return draw_secret(
            self.world.streams.rng("owner/secret"),
            self.world.task.classes,
            self.shape.classes,
            c.offset,
            self.public_axes,
            dict.fromkeys(widths, self.shape.vectors),
            c.epsilon is not None,
            c.none_classes,
        )

    @functools.cached_property
    def _protecting(self) -> Protecting | None:
        """What devices do to a batch; None where nothing is protected."""
        from sim.methods.side_tuning.protecting import Protecting

        if self.secret is None:
            return None
        return Protecting(self.config.protection, self.secret, self.world.streams)

    # --- what the server computes

    def fresh(self, seed: int) -> SideNetworkTrainer:
        """An untrained side network of this learner's shape, to be judged on the held-out texts."""
        from learning.side.tuning import SideNetworkTrainer, Training

        training = Training(self.config.learning_rate, self.config.weight_decay, self.config.loss)
        return SideNetworkTrainer(
            self.shape, self.config.side_network, training, self._held_out, seed
        )

    def ingest(self, backbone: str, data: Any, count: int) -> bool:
        """Decode a payload of so many records into the server's; False for one that holds nothing
        usable.
        """
        if not self._is_usable(data):
            return False
        batch = self._received(backbone, data)
        self.records += [(backbone, batch, row) for row in range(count)]
        if self.config.side_network.normalise == "standard":
            self.tuning = self.world.host.learn(
                _observed, Taken(self.tuning), backbone, batch, revive=self._revived
            )
        return True

    def _is_usable(self, data: Any) -> bool:
        return bool(data)

    def _received(self, backbone: str, data: Any) -> Learned:
        """A payload decoded: [(vectors, target), ...]."""
        from learning.side.activations import decode

        received = decode(data, self.shape.backbone_widths[backbone])
        key = hashlib.blake2b(data, digest_size=16).hexdigest()
        return Learned.given(f"payload/{key}", paired(received.values, received.targets))

    def forget(self, records: Sequence[int]) -> None:
        """Drop records that no later update will ask for."""
        for number in records:
            self.records[number] = None

    def step(self, update: Callable[..., Any], records: Sequence[int]) -> Callable[[], Learned]:
        """Begin a server update on the records of these numbers, `update(trainer, records)`; gives
        its loss.
        """
        return self._begun(update, [self.records[number] for number in sorted(records)])

    def fit(self, update: Callable[..., Any]) -> Callable[[], Learned]:
        """Begin a server update on all records that there are, `update(trainer, records)`; gives
        its loss.
        """
        return self._begun(update, [record for record in self.records if record is not None])

    def _begun(self, update: Callable[..., Any], mine: list) -> Callable[[], Learned]:
        backbones, batches, rows = map(list, zip(*mine, strict=True))
        self.tuning, loss = self.world.host.learn(
            _stepped,
            *(update, Taken(self.tuning), backbones, batches, rows),
            stored=(True, True),
            revive=self._revived,
        )

        def joined() -> Learned:
            if loss.is_new and not math.isfinite(
                loss.value
            ):  # it would have ended the interrupted run
                self._diverged = "loss"
            return loss

        return joined

    def _revived(self, saved: Mapping[str, Tensor]) -> SideNetworkTrainer:
        return self.fresh(self._seed).load(saved)

    def evaluate(self, part: Part = "test") -> dict[str, Score | None]:
        """The score of every backbone on the held-out texts."""
        return self.world.host.compute_now(self.scores_of, self.tuning, part)

    def scores_of(self, tuning: SideNetworkTrainer, part: Part) -> dict[str, Score | None]:
        """The same of any side network of this learner's shape."""
        held, task = self._held_out if part == "test" else self._validation, self.world.task
        return {
            name: task.score(part, tuning.predict(name, texts), self.config.loss)
            for name, texts in held.items()
        }

    def delivered(self, precision: str) -> dict[str, Score | None]:
        """The same of what the devices have, when the side network has gone to them."""
        from learning.side.delivery import delivered

        there = copy.copy(self.tuning.value)
        there.averaged = delivered(there.averaged, precision)
        return self.scores_of(there, "test")

    def _of_part(self, part: Part) -> dict[str, HeldOut]:
        texts = self.world.task.texts_of(part)
        if not len(texts):
            return {}
        return {name: self.held_out_of(name, texts) for name in self.vectors}

    def held_out_of(self, backbone: str, texts: np.ndarray) -> HeldOut:
        """Texts as one backbone sees them, and as a device itself predicts."""
        from learning.side.tuning import HeldOut

        labels = self.world.task.labels[texts]
        values, y_b = self.forward(backbone, texts), self._own_prediction(backbone, texts)
        if self.secret is None:
            return HeldOut(self.arrived(values), y_b, labels)
        sent, offset = self.secret.rotated(values), self.secret.offset(backbone, values)
        codes = self.secret.codes if self.config.loss == "squared-error" else None
        return HeldOut(self.arrived(sent), y_b, labels, offset, codes)

    def digest(self) -> str:
        """A digest of the shipped weights."""
        from learning.federated.state_codec import digest

        return digest(dict(sorted(self.tuning.value.averaged.state_dict().items())))

    def save(self, folder: Path) -> None:
        """model/side_network.safetensors with what is needed to use it."""
        from learning.side.inference import notes_for

        folder.mkdir(exist_ok=True)
        streams, task, kind = {}, self.world.task, self.config.backbone_prediction
        is_said = kind in VERBALISERS
        if kind == "random-head":
            streams = {name: self._head_stream(name) for name in self.vectors}
        words = [task.label_words[name] for name in task.class_names] if is_said else []
        notes = notes_for(
            {name: self.world.costing.learned[name] for name in self.vectors},
            self.vectors,
            task.class_names,
            pairs=task.texts is not None and task.texts.second_texts is not None,
            heads=streams,
            fitted=self._heads if kind == "public-head" else {},
            class_words=task.said(kind) if kind in SAID_FIRST else (),
            label_words=words,
            template=task.template or "",
            readout=self.config.readout,
            backbone_prediction=kind,
            loss=self.config.loss,
            max_tokens=str(task.max_tokens),
            # the secret would follow from it
            seed=str(self.world.seed) if self.secret is None else "",
            is_protected=str(int(self.secret is not None)),
            is_projected=str(int(self.projection is not None)),
            wire=str(self.arrives_by),
        )
        self.tuning.value.save_model(folder / "side_network.safetensors", **notes)
        if self.secret is not None:
            self.secret.save(folder / SECRET_FILE)
        if self.projection is not None:
            self.projection.save(folder / PROJECTION_FILE)


def paired(values: np.ndarray, targets: np.ndarray) -> list[Record]:
    """Records of a batch's vectors [n, V, d_m] and targets [n, ...]."""
    import torch

    return list(zip(torch.from_numpy(values), torch.from_numpy(targets), strict=True))


def _observed(tuning: SideNetworkTrainer, backbone: str, batch: list[Record]) -> SideNetworkTrainer:
    import torch

    tuning.observe(backbone, torch.stack([values for values, _ in batch]))
    return tuning


def _stepped(
    update: Callable[..., Any],
    tuning: SideNetworkTrainer,
    backbones: list[str],
    batches: list[list[Record]],
    rows: list[int],
) -> tuple[SideNetworkTrainer, float]:
    records = zip(backbones, batches, rows, strict=True)
    return update(tuning, [(backbone, *batch[row]) for backbone, batch, row in records])
