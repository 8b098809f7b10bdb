"""The task on the fleet: which texts are for training and for testing, who holds which, and how
long they are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from learning.backbones import responses
from learning.backbones.catalogue import BackboneSpec
from learning.backbones.prompts import CONTENT_FREE, prompts, why_unfit
from learning.backbones.tokens import Tokens, tokenise
from learning.data import drift, label_texts, partition
from learning.data import texts as data
from learning.metrics import DEFAULTS, Score, is_rating, mean_of, score, score_responses
from learning.metrics import why_unfit as why_unfit_metric
from learning.side.prediction_difference import VERBALISERS
from sim.kernel.learner import Part, ScoreKey, Scores
from sim.kernel.streams import Streams
from sim.scenario.arrivals import Drift
from sim.scenario.checks import located_data
from sim.scenario.data import SizedData
from sim.scenario.schema import (
    Dirichlet,
    Iid,
    Natural,
    OwnPartition,
    Scenario,
    Shards,
    TaskSettings,
)

CHARACTERS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class DividedTask:
    """Labelled texts, divided: `test`, `public` and, a device, `parts` are sample numbers into
    `labels` (and the texts); `label_texts` says of each class what it is, where somebody does.
    """

    labels: np.ndarray
    class_names: tuple[str, ...]
    test: np.ndarray
    parts: list[np.ndarray]
    clients: list[str] | None
    texts: data.TextDataset | None
    fixed_tokens: int | None
    max_tokens: int
    remarks: tuple[str, ...] = ()
    validation: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Sample numbers that no device holds and no test sees, to choose by."""
    test_pool: int = 0
    """Of how many texts those of the test were drawn, by the seed."""
    public: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """Sample numbers that the server has and no device holds."""
    label_texts: Mapping[str, str] = field(default_factory=dict)
    """What a text of each class is, where somebody says so."""
    template: str | None = None
    """What backbones read each text in; None: by itself."""
    label_words: Mapping[str, str] = field(default_factory=dict)
    """What a language model says for each class, where somebody says so."""
    metric: str = "accuracy"
    """What models are judged by, of `learning.metrics`."""
    kind: str = "classification"
    """What is learned: classes, ratings, or what is said next."""
    fixed_response_tokens: int | None = None
    """Of every text's response, where data are known by their size alone."""

    @property
    def held_out(self) -> np.ndarray:
        """The sample numbers of all parts that are looked at."""
        return np.concatenate([self.test, self.validation])

    @property
    def parts_held_out(self) -> list[Part]:
        """The parts that are looked at."""
        return ["test", "validation"] if len(self.validation) else ["test"]

    def texts_of(self, part: Part) -> np.ndarray:
        """The sample numbers of a part that is looked at."""
        return self.test if part == "test" else self.validation

    def score(
        self, part: Part, predictions_NC: np.ndarray, loss: str = "cross-entropy"
    ) -> Score | None:
        """What predictions for the texts of a part are worth (`learning.metrics.score`; for
        responses `score_responses`): every method's are judged here.
        """
        if self.has_responses:
            return score_responses(self.metric, predictions_NC)
        return score(self.metric, predictions_NC, self.labels[self.texts_of(part)], loss)

    def mean(
        self, scores: Scores, shares: Mapping[str, float], key: ScoreKey = "value"
    ) -> float | None:
        """The mean over backbones by their shares of the fleet; None where some have no score."""
        known = {name: one for name, one in scores.items() if one is not None}
        if not known or len(known) < len(scores):
            return None
        values = [one[key] for one in known.values()]
        metric = self.metric if key == "value" else key
        return mean_of(metric, values, [shares[name] for name in known])

    @property
    def has_ratings(self) -> bool:
        """Whether labels are real-valued ratings, rather than numbers of classes."""
        return is_rating(self.labels)

    @property
    def has_responses(self) -> bool:
        """Whether what is learned is what a response's next token is; classes are topics then."""
        return self.kind == "language-modelling"

    @property
    def classes(self) -> int:
        """The number of classes; 1 where there are ratings, which a model has one output for; 0
        where what is learned are responses, which a model has its vocabulary for.
        """
        return 0 if self.has_responses else len(self.class_names)

    def said(self, prediction: str) -> list[str]:
        """What is said of the classes for a kind of own prediction: their names, or a sentence
        each, in their order. A verbaliser is calibrated by the sentences, or by texts free of
        content where there are none.
        """
        if prediction == "label-names":
            return list(self.class_names)
        is_calibrated = prediction == "calibrated-verbaliser"
        if is_calibrated and not self.label_texts:
            return list(CONTENT_FREE)
        return [self.label_texts[name] for name in self.class_names]

    def said_tokens(self, spec: BackboneSpec, prediction: str) -> Tokens:
        """The same as this backbone's tokens; of a verbaliser, in its template."""
        said = self.said(prediction)
        if prediction not in VERBALISERS:
            return tokenise(spec, said, max_tokens=self.max_tokens)
        is_pairs = self.texts is not None and self.texts.second_texts is not None
        return self._in_template(spec, said, said if is_pairs else None)

    def said_lengths(self, spec: BackboneSpec, prediction: str) -> np.ndarray:
        """Tokens of these, shape [said]."""
        if self.fixed_tokens is not None:
            return np.full(self.classes, self.fixed_tokens)
        return self.said_tokens(spec, prediction).lengths()

    def _in_template(
        self, spec: BackboneSpec, texts: Sequence[str], seconds: Sequence[str] | None
    ) -> Tokens:
        if self.has_responses:
            assert seconds is not None, "data for language modelling have responses"
            return responses.responses(spec, self.template, texts, seconds, self.max_tokens)
        if self.template is None:
            return tokenise(spec, texts, seconds, self.max_tokens)
        return prompts(spec, self.template, texts, seconds, self.max_tokens)

    def tokens(self, spec: BackboneSpec, samples: np.ndarray) -> Tokens:
        """The samples as this backbone's tokens; piece by piece, for a tokenizer takes a hundred
        bytes a character.
        """
        if self.texts is None:
            raise data.DataError("data that is stated by its size alone has no texts")
        texts = self.texts.texts
        seconds = self.texts.responses if self.has_responses else self.texts.second_texts
        columns = [texts] if seconds is None else [texts, seconds]
        ends = np.cumsum([sum(len(column[i]) for column in columns) for i in samples])
        pieces = np.split(samples, np.flatnonzero(np.diff(ends // CHARACTERS_AT_ONCE)) + 1)
        made = [
            self._in_template(
                spec,
                [texts[i] for i in piece],
                None if seconds is None else [seconds[i] for i in piece],
            )
            for piece in pieces
        ]
        marked = [piece.segments for piece in made if piece.segments is not None]
        segments = [ids for piece in marked for ids in piece] if marked else None
        is_cut = [one for piece in made for one in piece.is_cut or ()]
        return Tokens([ids for piece in made for ids in piece.ids], segments, is_cut)

    def lengths(self, spec: BackboneSpec, samples: np.ndarray) -> np.ndarray:
        """Tokens of each sample, shape [n]."""
        if self.fixed_tokens is not None:
            return np.full(len(samples), self.fixed_tokens)
        return self.tokens(spec, samples).lengths()

    def response_lengths(self, spec: BackboneSpec, samples: np.ndarray) -> np.ndarray:
        """Tokens of each sample's response that are to be said, shape [n]."""
        if self.fixed_response_tokens is not None:
            return np.full(len(samples), self.fixed_response_tokens)
        return self.tokens(spec, samples).said_lengths()


def load_task(
    scenario: Scenario,
    streams: Streams,
    folder: Path,
    dry: bool,
    texts: data.TextDataset | None = None,
) -> DividedTask:
    """Load, split and divide the scenario's data, or `texts` in its place; paths are relative to
    `folder`.

    `data.DataError`, `partition.PartitionError` or `assets.AssetMissing` say what does not fit or
    is not there.
    """
    settings, dataset = scenario.task, scenario.task.dataset
    fixed = scenario.cost_as.tokens if scenario.cost_as else None
    fixed_response: int | None = None
    kind = settings.kind or "classification"
    n_devices = sum(group.count for group in scenario.fleet)
    share = settings.validation if isinstance(settings.validation, float) else 0.0
    further = int(settings.validation)  # a share comes out of the training texts themselves
    if texts is None and not isinstance(dataset, SizedData):
        texts = data.load(located_data(dataset, folder), kind)
    elif texts is not None:
        texts = data.fitted(texts, kind)
    if texts is None and isinstance(dataset, SizedData):
        if not dry:
            raise data.DataError(
                f"{scenario.name} states its data by size alone: it can only be run with --dry"
            )
        fixed, fixed_response = dataset.tokens, dataset.response_tokens
        classes = dataset.classes or 1
        names = tuple(map(str, range(classes)))
        n_train = (settings.train or 10_000) + further + settings.public
        n_test = settings.test or 1_000
        labels = streams.rng("task/labels").integers(0, classes, n_train + n_test)
        train, test = np.arange(n_train), np.arange(n_train, n_train + n_test)
        clients, test_pool = None, 0
    elif texts is not None:
        labels, names, clients = texts.labels, texts.class_names, texts.clients
        held = further + settings.public
        wanted = None if settings.train is None else settings.train + held
        train, test = data.split(texts, wanted, settings.test, streams.rng("task/split"), held)
        test_pool = len(texts) if texts.official_split is None else len(texts.official_split[1])
    held = math.ceil(share * len(train)) if share else further
    if held >= len(train):
        raise data.DataError(f"{held} validation texts leave none of {len(train)} to train on")
    train, validation = np.split(train, [len(train) - held])
    if settings.public >= len(train):
        raise data.DataError(
            f"{settings.public} public texts leave none of {len(train)} to train on"
        )
    train, public = np.split(train, [len(train) - settings.public])
    if settings.judge_on == "validation":
        if not held:
            raise data.DataError(
                "judge_on: validation needs `validation: N`, so many texts of the training part"
            )
        test, validation = validation, validation[:0]
    has_ratings = is_rating(labels)
    metric = settings.metric or DEFAULTS[kind]
    if unfit := why_unfit_metric(metric, kind, len(names)):
        raise data.DataError(f"task.metric: {unfit}")
    groups = partition.bins(labels) if has_ratings else labels
    parts, chosen = _divide(settings.partition, labels, groups, clients, train, n_devices, streams)
    remarks: list[str] = []
    if texts is not None:
        test, remarks = _judged(texts, np.concatenate(parts), test)
        seen = np.concatenate([*parts, test])  # who chooses by copies of these chooses by them
        validation = validation[~data.copies(texts, seen, validation)]
    left_out = len(train) - sum(map(len, parts))
    if left_out and settings.train is not None:
        whose = "in no device's part" if chosen is None else "of clients without a device"
        remarks.append(f"{left_out:,} of the {len(train):,} training texts are {whose}")
    if settings.drift is not None:
        parts = _drifted(
            settings.drift, groups if settings.drift.by == "label" else clients, parts, streams
        )
    template = template_of(scenario)
    is_pairs = texts is not None and texts.second_texts is not None
    if template is not None:
        of_responses = kind == "language-modelling"
        wrong = responses.why_unfit(template) if of_responses else why_unfit(template, is_pairs)
        if wrong:
            raise data.DataError(f"task.template: {wrong}")
    return DividedTask(
        labels,
        names,
        test,
        parts,
        chosen,
        texts,
        fixed,
        settings.max_tokens,
        tuple(remarks),
        validation,
        test_pool,
        public,
        _of_classes("label_texts", settings, names),
        template,
        _of_classes("label_words", settings, names),
        metric,
        kind,
        fixed_response,
    )


def template_of(scenario: Scenario) -> str | None:
    """What backbones read each text in: the user's, or for a verbaliser the one that comes with the
    data set.
    """
    prediction = getattr(scenario.method, "backbone_prediction", None)
    if scenario.task.template is None and prediction in VERBALISERS:
        return label_texts.shipped_template(scenario.task.dataset)
    return scenario.task.template


def _of_classes(
    key: Literal["label_texts", "label_words"], settings: TaskSettings, class_names: Sequence[str]
) -> Mapping[str, str]:
    """What is said of each class: the user's, or what comes with the data set; empty where nobody
    says anything. DataError for what is not of these classes.
    """
    given: Mapping[str, str] | None = getattr(settings, key)
    if given is None:
        found = label_texts.shipped(settings.dataset, key)
        return found if set(class_names) <= set(found) else {}
    for name, what in label_texts.problems(given, class_names, key):
        raise data.DataError(".".join(filter(None, (f"task.{key}", name))) + f": {what}")
    return given


def _judged(
    texts: data.TextDataset, held: np.ndarray, test: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """The texts to judge on, without copies of those that devices hold unless these are wanted; and
    what to know of them.
    """
    remarks = list(texts.remarks)
    drawn = len(test)
    is_copy = data.copies(texts, held, test)
    n_copies = int(is_copy.sum())
    if n_copies and texts.keep_test_copies:
        remarks.append(
            f"{n_copies:,} of {drawn:,} test texts stand in the training part, too, and are judged "
            "on all the same"
        )
    elif n_copies:
        remarks.append(
            f"{n_copies:,} of {drawn:,} test texts stand in the training part, too, and were left "
            "out of the test"
        )
        test = test[~is_copy]
    if not len(test):
        raise data.DataError(
            f"{texts.name}: no text is left to test on; {drawn:,} were set aside, and {n_copies:,} "
            "of these are trained on, too"
        )
    n_alike = int(data.copies(texts, held, test, in_any_case=True).sum()) - (
        n_copies if texts.keep_test_copies else 0
    )
    if n_alike:
        remarks.append(
            f"{n_alike:,} of {len(test):,} test texts differ from a training text in capital "
            "letters alone"
        )
    unknown = np.setdiff1d(texts.labels[test], texts.labels[held])
    if len(unknown) and not is_rating(texts.labels) and texts.responses is None:
        names = ", ".join(repr(texts.class_names[c]) for c in unknown[:3]) + (
            ", ..." if len(unknown) > 3 else ""
        )
        remarks.append(
            f"no training text is of {names}, which {np.isin(texts.labels[test], unknown).sum():,} "
            "test texts are of"
        )
    return test, remarks


def _drifted(
    how: Drift, groups: np.ndarray | None, parts: list[np.ndarray], streams: Streams
) -> list[np.ndarray]:
    """Each device's texts in an order that drifts; which groups are late is the same everywhere."""
    if groups is None:
        raise data.DataError("a drift by domain needs a client column; this data set has none")
    is_late = drift.late_groups(groups, streams.rng("task/drift"))
    rngs = (streams.rng("task/drift", index) for index in range(len(parts)))
    return [
        p[drift.order(is_late[p], rng, how.strength, how.kind)]
        for p, rng in zip(parts, rngs, strict=True)
    ]


def _divide(
    how, labels, groups, clients, train, n_devices, streams
) -> tuple[list[np.ndarray], list[str] | None]:
    rng = streams.rng("task/partition")
    match how:
        case Iid():
            parts = partition.iid(groups[train], n_devices, rng, how.min_size)
        case Dirichlet():
            parts = partition.dirichlet(
                groups[train], n_devices, rng, how.min_size, alpha=how.alpha, equal=how.equal
            )
        case Shards():
            parts = partition.by_class_shards(
                groups[train], n_devices, rng, how.min_size, shards=how.shards
            )
        case Natural():
            if clients is None:
                raise data.DataError(
                    "the natural partition needs a client column; this data set has none"
                )
            parts = partition.natural(
                clients[train], n_devices, rng, how.min_size, largest=how.choose == "largest"
            )
            return [train[part] for part in parts], [str(clients[train[part[0]]]) for part in parts]
        case OwnPartition():
            divide = how.divide
            parts = partition.own(
                divide, how.function, labels[train], n_devices, rng, how.min_size, how.settings
            )
    flat = train[np.concatenate(parts)] if parts else train[:0]
    ends = np.cumsum([len(part) for part in parts]).tolist()
    # views of one array, which weigh less than arrays of their own
    return [flat[start:end] for start, end in itertools.pairwise([0, *ends])], None
