"""Attacks on what the server of a run has seen, each a function of its uploads (`uploads_of`)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from learning.attacks import label_recovery
from learning.attacks.bags import blind_guess, judged_tokens
from learning.attacks.mixture import by_mixture
from learning.attacks.outcome import AttackOutcome, majority, of_share
from learning.attacks.standards import unit
from learning.attacks.text_recovery import Inverter, identify, turned_back, turned_by_axes
from learning.backbones.tokens import Tokens
from learning.side.prediction_difference import backbone_prediction
from learning.side.protection import to_classes
from sim.methods.side_tuning.protecting import enough_noise, vector_noise
from sim.methods.side_tuning.protection import protection_of
from sim.privacy.decoys import told_apart
from sim.privacy.measures import PrivacyError
from sim.privacy.uploads import Uploads, Vectors

PUBLIC, FEWEST, ATTACKED = 600, 50, 200
"""Texts that the attacker has, at most and at least, and those whose tokens are guessed, a
backbone.
"""
KNOWN, AXES = (50, 150), 32
"""Uploads whose texts he knows, and axes along which he looks, where vectors are rotated."""


def as_they_are(uploads: Uploads, kind: str) -> list[AttackOutcome]:
    """What needs no attack: how much of the labels, or of the texts, the server has as they are;
    nothing where it has none.
    """
    task, sent = uploads.sim.task, uploads.sent
    method: Any = uploads.sim.scenario.method
    if method.kind == "centralised":  # where all is from the start
        sent = dict.fromkeys(("text", "label"), np.unique(np.concatenate(task.parts)))
    if kind == "labels" and "label" in sent and not task.has_ratings:
        truth = task.labels[sent["label"]]
        return [of_share("sent as they are", "labels", truth == truth, majority(truth))]
    for texts_as in ("text", "token ids") if kind == "texts" else ():
        if texts_as in sent:
            whole = np.ones(len(sent[texts_as]), dtype=bool)
            return [
                of_share("sent as they are", what, whole, 0.0)
                for what in ("tokens, F1", "text in top 1")
            ]
    return []


def labels(uploads: Uploads, untried: list[str] | None = None) -> list[AttackOutcome]:
    """Recovery of labels from what goes along with activations: by the largest component, by what a
    server that knows the backbone computes itself, by which are alike, and from a few known labels;
    from the uploaded activations alone, too, which need no difference at all.

    PrivacyError for ratings, or a method that uploads no differences. What an attack has too little
    to go on for is a ValueError or, where `untried` is given, a sentence there.
    """
    if uploads.sim.task.has_ratings:
        raise PrivacyError("labels are ratings here: attacks on classes do not apply")
    parts, classes = uploads.vectors(), uploads.sim.task.classes
    truth_N = np.concatenate([uploads.labels[part.samples] for part in parts.values()])
    targets_NK = np.concatenate([part.targets for part in parts.values()])
    decoys_MK = np.concatenate([part.decoys.targets for part in parts.values()])
    protection = protection_of(uploads.sim.scenario.method)
    none_classes = 0 if protection is None else protection.none_classes
    y_b_NC, zero_shot_NC = _known_predictions(uploads, parts), _zero_shot(uploads, parts)
    axes = {name: uploads.learner_of(name).public_axes for name in parts}
    along = [own.along(name, parts[name].vectors) for name, own in axes.items() if own]
    widest = max(parts.values(), key=lambda part: len(part.samples))
    are_differences = not uploads.sends_labels and targets_NK.shape[1] == classes

    def attacks() -> Iterator[Callable[[], list[AttackOutcome]]]:
        rng = np.random.default_rng(0)
        if uploads.sends_labels or are_differences:
            yield lambda: [label_recovery.by_largest(targets_NK[:, :classes], truth_N)]
        if are_differences and y_b_NC is not None:
            yield lambda: [label_recovery.by_backbone_knowledge(targets_NK, y_b_NC, truth_N)]
        yield lambda: label_recovery.by_clustering(
            targets_NK, truth_N, classes, rng, others=decoys_MK, more_groups=none_classes
        )
        if len(decoys_MK):
            yield lambda: _without_decoys(
                uploads, parts, targets_NK, truth_N, decoys_MK, none_classes
            )
        if zero_shot_NC is not None:
            yield lambda: label_recovery.by_sentences(targets_NK, zero_shot_NC, truth_N, rng)
        if along:
            axes_NA = np.concatenate(along)
            yield lambda: [by_mixture(targets_NK, axes_NA, truth_N, classes, rng)]
        if protection is not None:
            yield lambda: [_with_the_secret(uploads, parts, truth_N)]
        yield lambda: [_by_what_is_learned(uploads, parts, truth_N, classes)]
        yield lambda: label_recovery.by_known_labels(
            widest.vectors, uploads.labels[widest.samples], np.random.default_rng(0)
        )

    return _tried(attacks(), untried)


def _tried(
    attacks: Iterable[Callable[[], list[AttackOutcome]]], untried: list[str] | None
) -> list[AttackOutcome]:
    found: list[AttackOutcome] = []
    for attack in attacks:
        try:
            found += attack()
        except ValueError as error:
            if untried is None:
                raise
            untried.append(str(error))
    return found


def _without_decoys(
    uploads: Uploads,
    parts: Mapping[str, Vectors],
    targets_NK: np.ndarray,
    truth_N: np.ndarray,
    decoys_MK: np.ndarray,
    none_classes: int,
) -> list[AttackOutcome]:
    """Which records are decoys, and groups named by their sizes without what is taken for one."""
    public, rng = dict[str, np.ndarray](), np.random.default_rng(0)
    secret = protection_of(uploads.sim.scenario.method)
    if uploads.sim.task.texts is not None and not (secret and secret.rotate):
        known = _others(uploads, rng, PUBLIC)
        for name, part in parts.items() if len(known) >= FEWEST else ():
            theirs = _computed(uploads, name, known, part.layers)
            public[name] = _ways(uploads, name, theirs, rng)[-1]
    outcomes, counted = told_apart(parts, public)
    given = (targets_NK, truth_N, uploads.sim.task.classes, rng, (), None)
    _, named = label_recovery.by_clustering(*given, decoys_MK, none_classes, counted)
    return [*outcomes, replace(named, attack=f"{named.attack}, without what looks like decoys")]


def _with_the_secret(
    uploads: Uploads, parts: Mapping[str, Vectors], truth_N: np.ndarray
) -> AttackOutcome:
    """Labels by a server that a device has told the secret: it decodes, as devices do."""
    said = []
    for name, part in parts.items():
        secret = uploads.learner_of(name).secret
        assert secret is not None, "as something is protected"
        offset_NK = secret.offset(name, secret.turned_back(part.vectors))
        said.append(to_classes(secret.codes, part.targets, offset_NK))
    found = label_recovery.by_largest(np.concatenate(said), truth_N)
    return replace(found, attack="decoding by a device's secret", what="labels, with the secret")


def _by_what_is_learned(
    uploads: Uploads, parts: Mapping[str, Vectors], truth_N: np.ndarray, classes: int
) -> AttackOutcome:
    """Groups by what the server's own side network says of the uploads: what can be learned of the
    classes, it has learned.
    """
    import torch

    said = []
    for name, part in parts.items():
        network = uploads.learner_of(name).tuning.value.averaged
        with torch.inference_mode():
            said.append(network(torch.from_numpy(part.vectors), name).cpu().numpy())
    rng = np.random.default_rng(0)
    groups_N = label_recovery.groups_of(np.concatenate(said), classes, rng)
    attack = "clustering what the side network says"
    return label_recovery.judged_groups(attack, groups_N, truth_N, rng)


def _known_predictions(uploads: Uploads, parts: Mapping[str, Vectors]) -> np.ndarray | None:
    """The backbones' own predictions as a server that knows them computes them from what is
    uploaded; None where that needs more than the last uploaded layer.
    """
    found = [
        uploads.learner_of(name).as_server(name, _last_layer(uploads, name, part))
        if part.layers[-1] == uploads.depth_of(name)
        else None
        for name, part in parts.items()
    ]
    known = [y_b_NC for y_b_NC in found if y_b_NC is not None]
    return np.concatenate(known) if len(known) == len(found) else None


def _zero_shot(uploads: Uploads, parts: Mapping[str, Vectors]) -> np.ndarray | None:
    """What a server says that knows the backbones and a sentence about each class, from the last
    uploaded layers alone, [n, C]; None where no sentences are known.
    """
    task = uploads.sim.task
    if not task.label_texts:
        return None
    found = []
    for name, part in parts.items():
        spec = uploads.sim.costing.learned[name]
        said = task.said_tokens(spec, "class-texts")
        classes_CD = _read(uploads, name, said)[:, part.layers[-1]]
        found.append(
            backbone_prediction(
                "class-texts", _last_layer(uploads, name, part), task.classes, classes_CD
            )
        )
    return np.concatenate(found)


def _last_layer(uploads: Uploads, backbone: str, part: Vectors) -> np.ndarray:
    """Of the last uploaded layer, as the backbone gave it, or nearly: [n, D]."""
    return uploads.learner_of(backbone).unprojected(backbone, part.vectors)[:, -1]


def texts(
    uploads: Uploads,
    public: int = PUBLIC,
    attacked: int = ATTACKED,
    untried: list[str] | None = None,
) -> list[AttackOutcome]:
    """Recovery of texts from activations by an attacker who has so many other texts of the kind and
    runs the backbone on them: which tokens stand in a text, of each uploaded layer and of all
    together, and which of the public texts and its own an upload is.

    PrivacyError for data known by size alone, or a method that uploads no activations; `untried` as
    of `labels`.
    """
    require_texts(uploads)
    attacks = [
        functools.partial(_of_backbone, uploads, name, part, public, attacked)
        for name, part in uploads.vectors().items()
    ]
    return _tried(attacks, untried)


def _of_backbone(
    uploads: Uploads, name: str, part: Vectors, public: int, attacked: int
) -> list[AttackOutcome]:
    """Recovery of texts from what devices of one backbone sent."""
    task, found = uploads.sim.task, list[AttackOutcome]()
    rng = np.random.default_rng(0)
    spec = uploads.sim.costing.learned[name]
    mine = rng.permutation(len(part.samples))[:attacked]
    known = known_texts(uploads, rng, public)
    theirs = _computed(uploads, name, known, part.layers)
    known_ids = task.tokens(spec, known).ids
    own_ids = task.tokens(spec, part.samples[mine]).ids
    marks = marks_of(own_ids)
    ways, blind = _ways(uploads, name, theirs, rng), blind_guess(known_ids, marks)
    for what, places in [
        *((f"layer {layer}", [place]) for place, layer in enumerate(part.layers)),
        ("all layers", list(range(len(part.layers)))),
    ]:
        inverter = Inverter.best([way[:, places] for way in ways], known_ids, marks)
        guesses = inverter.guess(part.vectors[mine][:, places])
        attack = f"tokens of {name}, {what}"
        found += judged_tokens(attack, guesses, own_ids, blind, rng, marks)
    own = _computed(uploads, name, part.samples[mine], part.layers)
    candidates = np.concatenate([own, theirs])
    found += [
        replace(outcome, attack=f"{outcome.attack}, {name}")
        for outcome in identify(part.vectors[mine], candidates, np.arange(len(mine)))
    ]
    protection = protection_of(uploads.sim.scenario.method)
    if protection is not None and protection.rotate:
        bags = _Bags(known_ids, own_ids, marks, blind)
        found += _turned_back(uploads, name, part, ways, mine, bags)
    return found


def require_texts(uploads: Uploads) -> None:
    """PrivacyError for data that are known by their size alone."""
    if uploads.sim.task.texts is None:
        raise PrivacyError("the data are known by their size alone: there are no texts to recover")


def known_texts(uploads: Uploads, rng: np.random.Generator, most: int) -> np.ndarray:
    """Sample numbers of texts that the attacker has; PrivacyError where they are too few."""
    known = _others(uploads, rng, most)
    if len(known) < FEWEST:
        raise PrivacyError(
            f"{len(known)} texts are on no device: an attacker needs {FEWEST} or more"
        )
    return known


def _others(uploads: Uploads, rng: np.random.Generator, most: int) -> np.ndarray:
    """Sample numbers of texts that are on no device, which the attacker has."""
    task = uploads.sim.task
    others = np.setdiff1d(np.arange(len(task.labels)), np.concatenate(task.parts))
    return rng.permutation(others)[:most]


def _ways(
    uploads: Uploads, backbone: str, theirs: np.ndarray, rng: np.random.Generator
) -> list[np.ndarray]:
    """The attacker's vectors [n, V, d] as they are and, where uploads are noisy or rounded, with as
    much noise, and rounded alike, which is no secret.
    """
    settings, learner = protection_of(uploads.sim.scenario.method), uploads.learner_of(backbone)
    alike = theirs
    if settings is not None and (settings.activation_noise or settings.epsilon is not None):
        enough = enough_noise(settings, theirs.shape[1])
        deviation = vector_noise(settings, theirs, enough)
        alike = theirs + deviation * rng.standard_normal(theirs.shape)
    arrived = learner.arrived(alike.astype(np.float32))
    return [theirs] if np.array_equal(arrived, theirs) else [theirs, arrived]


class _Bags(NamedTuple):
    """Token ids of the attacker's texts and of the attacked, those that every text has, and those
    to guess where nothing is known.
    """

    public: Sequence[np.ndarray]
    own: Sequence[np.ndarray]
    marks: tuple[int, ...]
    blind: np.ndarray


def _turned_back(
    uploads: Uploads,
    name: str,
    part: Vectors,
    versions: Sequence[np.ndarray],
    mine: np.ndarray,
    bags: _Bags,
) -> list[AttackOutcome]:
    """Against rotated vectors: of the last uploaded layer, along the uploads' own principal axes,
    which a rotation leaves, and turned back by some texts that the attacker knows.
    """
    rng, found = np.random.default_rng(0), list[AttackOutcome]()
    sent_ND, last = part.vectors[:, -1], [version[:, -1] for version in versions]
    most = min(AXES, len(sent_ND), len(last[0]))
    along = [turned_by_axes(sent_ND, public_MD, most) for public_MD in last]
    ways = {"by principal axes": (along[0][0], [public_MA for _, public_MA in along])}
    knowing = {"by principal axes": 0}
    rest = np.setdiff1d(np.arange(len(part.samples)), mine)
    for known in KNOWN:
        if known <= len(rest):
            some = rest[:known]
            own = _computed(uploads, name, part.samples[some], part.layers)[:, -1]
            way = f"by {known} texts known"
            ways[way] = (turned_back(sent_ND, some.tolist(), own), last)
            knowing[way] = known
    for way, (uploaded, publics) in ways.items():
        inverter = Inverter.best(publics, bags.public, bags.marks)
        attack = f"tokens of {name}, layer {part.layers[-1]}, turned back {way}"
        guesses = inverter.guess(uploaded[mine])
        judged = judged_tokens(attack, guesses, bags.own, bags.blind, rng, bags.marks)
        found += [replace(one, known=knowing[way]) for one in judged]
    return found


def marks_of(ids: Sequence[np.ndarray]) -> tuple[int, ...]:
    """Tokens that every text has, which say nothing of it."""
    common = set(ids[0].tolist()).intersection(*(one.tolist() for one in ids))
    return tuple(sorted(common))


def _computed(
    uploads: Uploads, backbone: str, samples: np.ndarray, layers: Sequence[int]
) -> np.ndarray:
    """These layers' vectors of texts, as whoever has the backbone, and knows along which axes they
    are sent, computes them: [n, layers, d].
    """
    spec = uploads.sim.costing.learned[backbone]
    read_NVD = _read(uploads, backbone, uploads.sim.task.tokens(spec, samples))
    learner = uploads.learner_of(backbone)
    sent_NVD = learner.projected(backbone, read_NVD[:, list(layers)])
    is_unit = learner.secret is not None and learner.secret.is_unit  # which is no secret
    return unit(sent_NVD) if is_unit else sent_NVD


def _read(uploads: Uploads, backbone: str, tokens: Tokens) -> np.ndarray:
    from learning.side.activation_store import ActivationStore
    from learning.side.readouts import pooled_activations

    config: Any = uploads.sim.scenario.method
    read = pooled_activations(
        uploads.sim.costing.learned[backbone],
        tokens,
        config.readout,
        ActivationStore(uploads.sim.store_folder),
        lambda compute, pieces: (compute(*piece) for piece in pieces),
    )
    return read.take()
