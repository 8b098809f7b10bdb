"""What is wrong with a well-formed scenario before anything runs: names that do not exist, things
that do not fit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import devices.hardware
import devices.profile
import devices.profile_file
import network.profile
from devices import availability as rhythms
from inputs.files import FileProblem, located
from inputs.shipped import is_file, place
from learning.backbones import catalogue, prompts, responses
from learning.data import label_texts
from learning.data import texts as data
from learning.metrics import DEFAULTS, LESS_IS_BETTER, why_unfit
from learning.side import taps
from learning.side.prediction_difference import VERBALISERS
from sim.scenario.arrivals import ListedJoin
from sim.scenario.availability import Diurnal
from sim.scenario.complaints import nearest
from sim.scenario.data import OwnData, SizedData
from sim.scenario.schema import MOST_DEVICES, AnyMethod, Compare, Mix, Scenario, TaskSettings
from sim.scenario.settings import RENAMED, as_seen, why_unread

Where = tuple[str | int, ...]


def problems(scenario: Scenario, folder: Path = Path()) -> Iterator[tuple[Where, str]]:
    """What is wrong with a well-formed scenario: names that do not exist, things that do not fit;
    (where, what).

    `folder` is where profiles of one's own are looked for, before the working directory.
    """
    for index, group in enumerate(scenario.fleet):
        here = ("fleet", index)
        for device in choices(group.device):
            yield from _device_problems(here, device, choices(group.engine), folder)
        for link in choices(group.link):
            known = network.profile.PROFILES
            found = list(_unknown((*here, "link"), link, known, "link", "list links", folder))
            yield from found
            if not found and known.file(link, folder).parent != known.folder:  # not ours
                yield from _tried((*here, "link"), partial(network.profile.load, link, folder))
        for backbone in choices(group.backbone):
            yield from _tried((*here, "backbone"), partial(_with_weights, backbone, scenario))
        for cell in choices(group.cell) if group.cell is not None else ():
            yield from _unknown((*here, "cell"), cell, set(scenario.cells), "cell", None)
        for number, cell in enumerate(group.mobility.cells if group.mobility else ()):
            yield from _unknown(
                (*here, "mobility", "cells", number),
                cell,
                set(scenario.cells),
                "cell",
                None,
            )
    server = scenario.server
    yield from _device_problems(("server",), server.device, [server.engine], folder)
    yield from _data_problems(scenario.task)
    yield from _label_problems("label_texts", scenario, folder)
    yield from _label_problems("label_words", scenario, folder)
    yield from _prediction_problems(scenario)
    for where, method in _methods(scenario).items():
        for name, what in getattr(method, "unfit", tuple)():
            yield (*where, "side_network", name), what
    yield from _precision_problems(scenario)
    yield from _metric_problems(scenario)
    yield from _rating_problems(scenario)
    yield from _sized_problems(scenario)
    yield from _response_problems(scenario)
    if (total := sum(group.count for group in scenario.fleet)) > MOST_DEVICES:
        yield ("fleet",), f"{total:,} devices, and {MOST_DEVICES:,} is the most"
    yield from scenario.ignored()
    yield from _cell_problems(scenario)
    yield from _trace_problems(scenario)
    if scenario.compare:
        for key in ("ours", "reference"):
            label = getattr(scenario.compare, key)
            if label is not None:
                yield from _unknown(
                    ("compare", key),
                    label,
                    set(scenario.compare.methods),
                    "method",
                    None,
                )
        yield from _tuning_problems(scenario.compare, scenario.stop.target)
        yield from _role_problems(scenario.compare)
        yield from _twin_problems(scenario.compare)
        for index, label in enumerate(scenario.compare.baselines or ()):
            where = ("compare", "baselines", index)
            yield from _unknown(where, label, set(scenario.compare.methods), "method", None)
    if isinstance(scenario.arrivals, ListedJoin):
        total = sum(group.count for group in scenario.fleet)
        if len(scenario.arrivals.times) != total:
            yield (
                ("arrivals", "times"),
                f"{len(scenario.arrivals.times)} joining times for {total} devices",
            )
    if scenario.dropout and scenario.dropout.times is not None:
        total = sum(group.count for group in scenario.fleet)
        if len(scenario.dropout.times) != total:
            yield (
                ("dropout", "times"),
                f"{len(scenario.dropout.times)} drop-out times for {total} devices",
            )
    if isinstance(scenario.availability, Diurnal):
        rhythm = scenario.availability.rhythm
        spot = ("availability", "rhythm")
        wrong = list(_unknown(spot, rhythm, rhythms.PROFILES, "rhythm", None, folder))
        yield from wrong or _tried(spot, partial(rhythms.load, rhythm, folder))
    if scenario.cost_as:
        costed = scenario.cost_as.backbone
        for name in [costed] if isinstance(costed, str) else costed.values():
            look_up = partial(catalogue.find, name, scenario.own_backbones)
            yield from _tried(("cost_as", "backbone"), look_up)
        if isinstance(costed, dict):
            used = {backbone for group in scenario.fleet for backbone in choices(group.backbone)}
            for name in sorted(used - set(costed)):
                yield ("cost_as", "backbone"), f"nothing is said for {name!r}, which the fleet uses"


def _precision_problems(scenario: Scenario) -> Iterator[tuple[Where, str]]:
    """What is rounded to int8 stays as it is."""
    methods = _methods(scenario).values()
    if full := [one.kind for one in methods if getattr(one, "trains", None) == "full"]:
        for index, group in enumerate(scenario.fleet):
            if group.precision == "int8":
                yield (
                    ("fleet", index, "precision"),
                    f"a backbone in int8 is frozen, and {full[0]} trains all of it: choose "
                    "float16, or another method",
                )


def _metric_problems(scenario: Scenario) -> Iterator[tuple[Where, str]]:
    """As far as a scenario tells how many classes there are; the data tell the rest."""
    task, classes = scenario.task, 2
    if isinstance(task.dataset, SizedData):
        classes = task.dataset.classes or classes
    elif isinstance(task.dataset, str):
        with suppress(ValueError):  # which has been said above
            classes = data.find(task.dataset).classes or classes
    kind = task.kind or "classification"
    if task.metric and (unfit := why_unfit(task.metric, kind, classes)):
        yield ("task", "metric"), unfit
    targets = {("stop", "target"): scenario.stop.target}
    if scenario.compare:
        targets[("compare", "target")] = scenario.compare.target
    metric = task.metric or DEFAULTS[kind]
    for where, target in targets.items():
        if target is not None and target > 1 and metric not in LESS_IS_BETTER:
            yield where, f"expected at most 1, the most that {metric} can be (got {target:g})"


def _rating_problems(scenario: Scenario) -> Iterator[tuple[Where, str]]:
    """What cannot be where labels are ratings."""
    task = scenario.task
    if task.kind != "regression":
        return
    if isinstance(task.dataset, SizedData):
        yield ("task", "kind"), "data stated by its size alone has classes and no ratings"
    for where, method in _methods(scenario).items():
        if getattr(method, "loss", "squared-error") != "squared-error":
            todo = "say `loss: squared-error`"
            if method.kind == "mobillm":  # which has no other
                todo = "mobillm cannot learn them, pae-mobillm can"
            yield (*where, "loss"), f"cross-entropy is of classes, and these are ratings: {todo}"
        if (own := getattr(method, "backbone_prediction", "uniform")) != "uniform":
            yield (
                (*where, "backbone_prediction"),
                f"{own} predicts classes, and these are ratings: say `uniform`, which begins at 0",
            )


def _response_problems(scenario: Scenario) -> Iterator[tuple[Where, str]]:
    """Methods that cannot learn what is said next, or nothing else; and settings of a head that a
    language model has not.
    """
    of_responses = scenario.task.kind == "language-modelling"
    for where, method in _methods(scenario).items():
        if of_responses and method.responses == "never":
            yield (
                (*where, "kind"),
                f"{method.kind} learns classes, and this task is to learn what is said next: take "
                "fed-mobillm-lm, federated PEFT (fedavg-lora), split learning (splitfed-v1), a "
                "forward-only method or local-lora",
            )
        elif not of_responses and method.responses == "only":
            yield (
                (*where, "kind"),
                f"{method.kind} learns what is said next: say `task.kind: language-modelling`, or "
                "take fed-mobillm for classes",
            )
        elif of_responses:
            for name in sorted({"head", "readout"} & method.model_fields_set):
                yield (
                    (*where, name),
                    "is of a classifier, and what is said next is read off the model's own "
                    "vocabulary, token by token: leave it out",
                )


def _sized_problems(scenario: Scenario) -> Iterator[tuple[Where, str]]:
    """Sizes of another kind of task than is asked for."""
    data_, of_responses = scenario.task.dataset, scenario.task.kind == "language-modelling"
    if isinstance(data_, SizedData) and of_responses != (data_.response_tokens is not None):
        want, have = (
            ("response_tokens", "classes") if of_responses else ("classes", "response_tokens")
        )
        yield (
            ("task", "dataset"),
            f"this kind of task has `{want}` among its sizes, and no `{have}`",
        )


def _methods(scenario: Scenario) -> dict[Where, AnyMethod]:
    methods: dict[Where, AnyMethod] = {("method",): scenario.method}
    if scenario.compare:
        methods |= {("compare", "methods", k): m for k, m in scenario.compare.methods.items()}
    return methods


def _role_problems(compare: Compare) -> Iterator[tuple[Where, str]]:
    """What cannot be held against others, or others against it."""
    ours = compare.label_of_ours
    references = {label for label, method in compare.methods.items() if method.is_reference}
    if compare.ours in references:
        what = "is a reference, and references are in no reduction: name another method"
        yield ("compare", "ours"), f"{compare.ours!r} {what}"
    if compare.baselines == []:
        yield ("compare", "baselines"), "names none: leave it out, which means all others"
    for index, label in enumerate(compare.baselines or ()):
        where = ("compare", "baselines", index)
        if label == ours:
            yield where, f"{label!r} is `ours`, which is not held against itself: leave it out"
        elif label in references:
            what = "is a reference, a line beside the methods and no baseline: leave it out"
            yield where, f"{label!r} {what}"


def _twin_problems(compare: Compare) -> Iterator[tuple[Where, str]]:
    """Labels that nobody could tell apart in a table."""
    seen: dict[str, str] = {}
    for label in compare.methods:
        if (other := seen.setdefault(as_seen(label), label)) != label:
            yield ("compare", "methods", label), f"looks like {other!r}: give it another label"


def _tuning_problems(
    compare: Compare, target: float | None
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if compare.tune is None:
        return
    if compare.over is not None:
        yield ("compare", "tune"), "does not go together with `over`: tune in a scenario of its own"
    if compare.target is None and target is None:
        yield ("compare", "tune"), "needs a `target`: what is tuned is the cost to reach it"
    if not any(compare.tune.dials.values()):
        yield (
            ("compare", "tune", "dials"),
            "name no values to choose from, so that nothing would be tuned: leave out `tune`",
        )
    for label in compare.tune.dials:
        where = ("compare", "tune", "dials", label)
        yield from _unknown(where, label, set(compare.methods), "method", None)
        dials = compare.tune.dials[label]
        fields = type(compare.methods[label]).model_fields if label in compare.methods else dials
        for key in dials:
            name = key.partition(".")[0]
            if name == "kind":
                yield (*where, key), "is another method: list that under `compare.methods`"
            if name not in {*fields, *RENAMED}:
                yield (*where, key), f"no setting is called {name!r}{nearest(name, fields)}"
        for key in dials if label in compare.methods and "peft" not in dials else ():
            if what := why_unread(compare.methods[label], key):
                yield (*where, key), f"is for {what} alone, so that it would tune nothing"


def _cell_problems(scenario: Scenario) -> Iterator[tuple[tuple[str | int, ...], str]]:
    for name, cell in scenario.cells.items():
        if cell.kind == "shared" and (cell.up is None or cell.down is None):
            yield (
                ("cells", name),
                "a shared cell needs `up` and `down`; air, `kind: wifi` or `cellular`, can do "
                "without",
            )
    for index, group in enumerate(scenario.fleet):
        if group.mobility and group.cell is not None:
            yield (
                ("fleet", index, "mobility"),
                "says in which cells its devices are: leave out `cell`",
            )
        if group.mobility and len(set(group.mobility.cells)) < len(group.mobility.cells):
            yield ("fleet", index, "mobility", "cells"), "names a cell twice"


def _trace_problems(scenario: Scenario) -> Iterator[tuple[tuple[str | int, ...], str]]:
    links = {"ingress", "egress"} | {
        f"{cell}/{way}" for cell in scenario.cells for way in ("up", "down")
    }
    for name, trace in scenario.traces.items():
        yield from _unknown(("traces", name), name, links, "shared link", None)
        if isinstance(trace, str):
            continue  # a file, which says itself what is wrong with it
        if len(trace.times) != len(trace.capacity):
            yield ("traces", name), f"{len(trace.times)} times for {len(trace.capacity)} capacities"
        elif trace.times[0] != 0 or any(
            b <= a for a, b in zip(trace.times, trace.times[1:], strict=False)
        ):
            yield ("traces", name, "times"), "times must start at 0 s and rise"
        elif trace.period is not None and trace.period <= trace.times[-1]:
            yield ("traces", name, "period"), "the period must be longer than the last time"


def _data_problems(task: TaskSettings) -> Iterator[tuple[Where, str]]:
    """A data set that there is not, or not for this kind of task."""
    kind = task.kind or "classification"
    if isinstance(task.dataset, OwnData):
        for key in ("text", "label") if kind != "language-modelling" else ():
            if getattr(task.dataset, key) is None:
                yield ("task", "dataset", key), "expected text or a whole number (got nothing)"
        for key, what in data.why_unfit_columns(task.dataset.model_dump(), kind):
            yield ("task", "dataset", key), what
    elif isinstance(task.dataset, str):
        wrong = list(_tried(("task", "dataset"), partial(data.find, task.dataset)))
        yield from wrong
        has_responses = not wrong and data.find(task.dataset).has_responses
        if has_responses and (unfit := data.why_unfit(task.dataset, kind)):
            yield ("task", "dataset"), unfit


def _label_problems(
    key: label_texts.Key, scenario: Scenario, folder: Path
) -> Iterator[tuple[Where, str]]:
    """Sentences, or words, of classes that there are not, and classes without one."""
    task, given = scenario.task, getattr(scenario.task, key)
    if given is None:
        return
    if task.kind == "language-modelling":
        yield ("task", key), "is of classes, and language modelling has none: leave it out"
        return
    if isinstance(task.dataset, SizedData):
        names: Collection[str] = [str(number) for number in range(task.dataset.classes or 0)]
    elif isinstance(task.dataset, str) and (shipped := label_texts.shipped(task.dataset)):
        names = shipped
    else:
        try:
            names = data.load(located_data(task.dataset, folder)).class_names
        except ValueError:  # whoever reads the texts says what is wrong with them
            return
    for name, what in label_texts.problems(given, list(names), key):
        yield ("task", key, *([name] if name else [])), what


def _prediction_problems(scenario: Scenario) -> Iterator[tuple[Where, str]]:
    """A backbone's own prediction from what the task does not have."""
    task = scenario.task
    of_responses = task.kind == "language-modelling"
    why = responses.why_unfit if of_responses else prompts.why_unfit
    if task.template is not None and (unfit := why(task.template)):
        yield ("task", "template"), unfit
    for where, method in _methods(scenario).items():
        for what in _lacking(getattr(method, "backbone_prediction", None), task):
            yield (*where, "backbone_prediction"), what
        rule = taps.rule_of(getattr(method, "taps", []))
        if rule is not None and rule.asks_texts and not task.public:
            lacking = "layers that texts choose need `task.public: N`, so many labelled texts"
            yield (*where, "taps"), f"{lacking} at the server"
        protection = getattr(method, "protection", None)
        if protection is not None and protection.offset > 0 and protection.axes >= task.public:
            yield (
                (*where, "protection", "offset"),
                f"{protection.axes} axes need more than {protection.axes} public texts, and "
                f"`task.public` is {task.public}: say more, or fewer `axes`",
            )


def _lacking(kind: str | None, task: TaskSettings) -> Iterator[str]:
    """What a kind of own prediction needs and the task does not have."""
    if kind == "class-texts" and not (task.label_texts or label_texts.shipped(task.dataset)):
        yield "class-texts needs `task.label_texts`, a sentence about each class"
    if kind == "public-head" and not task.public:
        yield "public-head needs `task.public: N`, so many labelled texts at the server"
    if kind in VERBALISERS and not isinstance(task.dataset, SizedData):
        if not (task.label_words or label_texts.shipped(task.dataset, "label_words")):
            yield f"{kind} needs `task.label_words`, a word to say for each class"
        if task.template is None and not label_texts.shipped_template(task.dataset):
            yield f'{kind} needs `task.template`, such as "{{text}}\\nTopic:"'


def located_data(dataset: str | OwnData | SizedData, folder: Path) -> str | dict[str, Any]:
    """A name, or the description of a file with its paths as they are from here."""
    if isinstance(dataset, str):
        return dataset
    given = {key: value for key, value in dataset.model_dump().items() if value is not None}
    for key in {"path", "test"} & set(given):
        given[key] = str(located(given[key], folder))
    return given


def choices(mix: Mix) -> list[str]:
    """The names that a mix may give."""
    return list(mix) if isinstance(mix, Mapping) else [mix]


def _with_weights(name: str, scenario: Scenario) -> None:
    spec = catalogue.find(name, scenario.own_backbones)
    if not spec.has_weights and not isinstance(scenario.task.dataset, SizedData):
        raise ValueError(
            f"{name!r} is an architecture without weights: it can be costed (cost_as), not learn"
        )


def _device_problems(
    here: Where, device: str, engines: list[str], folder: Path
) -> Iterator[tuple[Where, str]]:
    """What is wrong with a device's name, its file, or the engines that are asked of it."""
    where, known = (*here, "device"), devices.profile_file.PROFILES
    found = list(_unknown(where, device, known, "device", "list devices", folder))
    found = found or list(_tried(where, lambda: devices.profile.load(device, folder)))
    yield from found
    for engine in engines if not found else ():
        yield from _tried((*here, "engine"), partial(_engine, device, folder, engine))


def _engine(device: str, folder: Path, engine: str) -> devices.hardware.Engine:
    return devices.profile.load(device, folder).engine(engine)


def _unknown(
    where: Where,
    name: str,
    known: Collection[str],
    kind: str,
    listing: str | None,
    folder: Path | None = None,
) -> Iterator[tuple[Where, str]]:
    """What is wrong with a name that is not known, and is no file, where one may be named: then it
    lies in `folder`, or in the working directory.
    """
    try:
        if folder is not None and is_file(name) and os.path.isfile(place(name, folder)):
            return
        if name in known:
            return
    except FileProblem as error:  # of a home of nobody's, or packages that bring such things
        yield where, str(error)
        return
    if folder is not None and is_file(name):
        yield where, f"there is no file {name!r} in the scenario's folder, nor where Python runs"
        return
    near = get_close_matches(name, known, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    see = (
        f" (`mobifleet {listing}` shows all)"
        if listing
        else f" (there are: {', '.join(sorted(known)) or 'none'})"
    )
    yield where, f"no {kind} is called {name!r}{hint}{see}"


def _tried(where: Where, attempt: Callable[[], object]) -> Iterator[tuple[Where, str]]:
    try:
        attempt()
    except ValueError as error:
        for line in str(error).splitlines():  # of a profile's file that has several mistakes
            yield where, line
