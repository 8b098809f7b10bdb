"""What a scenario file may say: the fields, their units and their defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, PrivateAttr, Tag, model_serializer, model_validator

from inputs.units import BitsPerSecond, Bytes, Seconds
from sim.scenario import partitions, registry
from sim.scenario.arrivals import AnyData, AnyJoin, AtOnce, DataPresent, Drift
from sim.scenario.availability import AnyAvailability, DropOut
from sim.scenario.complaints import forget_schemas
from sim.scenario.conditions import Varying
from sim.scenario.data import OwnData, SizedData, kind_of_data, to_be_said
from sim.scenario.named_files import (
    CodeName,
    DatasetName,
    DeviceName,
    FilePath,
    HubModel,
    LinkName,
    ModelFolder,
)
from sim.scenario.settings import (
    Label,
    LabelTexts,
    OnlyFor,
    RenamedSettings,
    Settings,
    name_now,
)

if TYPE_CHECKING:

    class AnyMethod(Settings):
        """What the settings of every method have."""

        kind: str

else:
    AnyMethod = Settings  # until methods are registered: see `_may_name`

# so that a slip of the keyboard is an error, not all memory
MOST_TEXTS = 20_000_000
MOST_DEVICES = 2_000_000

Weight = Annotated[float, Field(ge=0)]
Mix = str | dict[str, Weight]
"""One name for all, or a mapping name -> weight to draw from."""


class Iid(Settings):
    """Equal parts of a random order."""

    kind: Literal["iid"]
    min_size: int = Field(1, ge=1)
    """Fewest samples a device may hold."""


class Dirichlet(Settings):
    """Label shares drawn from a Dirichlet distribution; the smaller alpha, the more skewed."""

    kind: Literal["dirichlet"]
    alpha: float = Field(gt=0)
    min_size: int = Field(1, ge=1)
    equal: bool = False
    """Devices of equal size, each drawing its own label shares (Hsu et al. 2019), instead of
    Flower's cut by class.
    """


class Shards(Settings):
    """Each device gets `shards` pieces of the label-sorted data (the "pathological" split of
    McMahan et al. 2017).
    """

    kind: Literal["shards"]
    shards: int = Field(2, ge=1)
    min_size: int = Field(1, ge=1)


class Natural(Settings):
    """Each device is one client of the data set's own client column, e.g. one film."""

    kind: Literal["natural"]
    min_size: int = Field(1, ge=1)
    choose: Literal["largest", "random"] = "random"


class OwnPartition(Settings):
    """A function of one's own divides the labels, as `learning.data.partition.iid` does."""

    kind: Literal["own"]
    function: CodeName
    """`my_file.py:divide` or `my_package.module:divide`, which need `--allow-code`, or a registered
    name.
    """
    min_size: int = Field(1, ge=1)
    settings: dict[str, Any] = {}
    """What else the function is given, by name."""
    _divide: Callable[..., Any] | None = PrivateAttr(None)

    def model_post_init(self, context: Any) -> None:
        """Keep the function that the name means now: in another folder it may mean another."""
        self._divide = partitions.find(self.function)

    @property
    def divide(self) -> Callable[..., Any]:
        """The function; MethodError for code that nobody has allowed to run."""
        return partitions.allowed(self._divide, self.function)

    def __reduce__(self) -> tuple[Any, ...]:
        given = self.model_dump(exclude_unset=True)
        return partitions.received, (type(self), given, partitions.sent(self._divide))


AnyPartition = Iid | Dirichlet | Shards | Natural | OwnPartition


MetricName = (
    Literal["accuracy", "f1", "macro-f1", "mcc", "pearson", "spearman"]
    | Literal["perplexity", "next-token-accuracy"]
)


class TaskSettings(Settings):
    """What is learned, from which data, and how the data lie on the devices."""

    only_for: ClassVar[OnlyFor] = dict.fromkeys(
        ("generate", "device_replies"),
        ("`kind: language-modelling`", lambda s: s.kind == "language-modelling"),
    )

    dataset: Annotated[
        Annotated[DatasetName, Tag("str")]
        | Annotated[OwnData, Tag("OwnData")]
        | Annotated[SizedData, Tag("SizedData")],
        Discriminator(kind_of_data),
    ]
    """A name of `mobifleet list datasets`, a file of your own, or sizes alone."""
    train: int | None = Field(None, ge=1, le=MOST_TEXTS)
    """Training texts over all devices; default all that the data set has."""
    test: int | None = Field(None, ge=1, le=MOST_TEXTS)
    """Held-out texts; default the official test part, or a fifth."""
    validation: Annotated[int, Field(ge=0, le=MOST_TEXTS)] | Annotated[float, Field(gt=0, lt=1)] = 0
    """So many further texts that no device holds, to choose by; or a share of `train`."""
    judge_on: Literal["test", "validation"] = "test"
    """The texts that `metric` is taken on."""
    public: int = Field(0, ge=0, le=MOST_TEXTS)
    """Further labelled texts of the training part, at the server and on no device."""
    label_texts: LabelTexts | None = None
    """Class name -> a sentence about its texts; default those that come with the data set."""
    template: str | None = Field(None, max_length=10_000)
    """What every backbone reads a text in, with `{text}` (and `{second_text}` of a pair) in its
    place; default the text alone, for a verbaliser what comes with the data set.
    """
    label_words: LabelTexts | None = None
    """Class name -> what a language model says next for it; default what comes with the data set.
    """
    kind: Literal["classification", "regression", "language-modelling"] | None = None
    """What is learned: a text's class, its rating, or what is said next; default its class."""
    metric: MetricName | None = None
    """What models are judged by, in every table, target and curve; default accuracy, of ratings
    pearson, of responses perplexity (of which less is better).
    """
    generate: int = Field(16, ge=0, le=1000)
    """Test prompts that models reply to, greedily, at the end: untrained and trained."""
    device_replies: int = Field(0, ge=0, le=1000)
    """Replies of each device once training is over, on the clock, after what it then downloads."""
    max_tokens: int = Field(64, ge=4, le=8192)
    partition: Annotated[AnyPartition, Field(discriminator="kind")] = Iid(kind="iid")
    drift: Drift | None = None
    """The order in which a device's texts come; by default random."""

    @model_validator(mode="before")
    @classmethod
    def _without_labels(cls, given: Any) -> Any:
        """Where texts are to be said, a file of one's own has no labels unless these are named."""
        is_said = isinstance(given, dict) and given.get("kind") == "language-modelling"
        return to_be_said(given) if is_said else given

    @model_serializer(mode="wrap")
    def _without_defaults(self, dump: Callable[[TaskSettings], dict[str, Any]]) -> dict[str, Any]:
        """As in `Scenario`: who leaves the later settings alone keeps the digest."""
        later = {"drift": None, "public": 0, "label_texts": None, "kind": None, "metric": None}
        later |= {"template": None, "label_words": None, "generate": 16, "device_replies": 0}
        return {
            key: value
            for key, value in dump(self).items()
            if key not in later or value != later[key]
        }


class Mobility(Settings):
    """Devices that move from cell to cell; a transfer under way is handed over."""

    cells: list[str] = Field(min_length=2)
    mean_stay: Annotated[Seconds, Field(gt=0)]
    """Mean time in a cell; stays are exponential."""
    handover: Seconds = 0.05
    """How long a transfer stands still at each change."""
    order: Literal["random", "tour"] = "random"
    """Go to any other cell, or through the list, round and round."""


class GroupSettings(Settings):
    """Devices that are alike, or drawn from the same mixes."""

    count: int = Field(ge=1, le=MOST_DEVICES)
    device: DeviceName | dict[DeviceName, Weight]
    """A device profile, or a mix of them."""
    backbone: Mix
    link: LinkName | dict[LinkName, Weight]
    engine: Mix = "simple"
    """The software path of the profile: `simple`, or another of `mobifleet list devices`."""
    cell: Mix | None = None
    """The shared cell or access point its link passes, if any; see `cells`."""
    mobility: Mobility | None = None
    """Cells that its devices move through, instead of `cell`."""
    trace: FilePath | None = None
    """A file of times and rates, or of packets delivered, in place of the uplink's rate; each
    device starts somewhere in it.
    """
    down_trace: FilePath | None = None
    """The same for the downlink."""
    memory: Bytes | None = None
    """Memory that the work may use; default the device's RAM."""
    precision: Literal["float32", "float16", "bfloat16", "int8"] = "float32"
    """Of the backbone's weights and activations in the device's memory; int8 of its linear maps'
    weights, all else then in float16.
    """
    name: str | None = None


class CellSettings(Settings):
    """A cell or access point that several devices share."""

    only_for: ClassVar[OnlyFor] = {
        "gain": ("`kind: cellular`", lambda settings: settings.kind == "cellular"),
        "fair_uplink": ("`kind: wifi`", lambda settings: settings.kind == "wifi"),
    }
    kind: Literal["shared", "wifi", "cellular"] = "shared"
    """A pipe of `up` and `down`, or air, shared by time on it, with a wire of `up` and `down`
    behind it.
    """
    up: BitsPerSecond | None = None
    down: BitsPerSecond | None = None
    gain: float = Field(1.0, ge=1, le=10)
    """Of a cellular scheduler that serves each user when its own channel is good."""
    fair_uplink: bool = False
    """WiFi whose stations send by equal time, as the access point tells them, not in turn."""


class LinkSettings(Settings):
    """What every device's own link is charged with, beside its rate and latency."""

    vary: bool = False
    """Let rates vary from second to second as the profile's `cv` and `lag1` say."""
    tcp: bool = False
    """Count the profile's loss, windows and slow start."""


class TraceSettings(Settings):
    """A capacity over time, piecewise constant; it repeats after `period` if that is given."""

    times: list[Seconds] = Field(min_length=1)
    capacity: list[BitsPerSecond] = Field(min_length=1)
    period: Seconds | None = None


class ServerSettings(Settings):
    """The server: one accelerator with a queue, behind shared links."""

    device: DeviceName = Field("a100", validate_default=True)
    engine: str = "simple"
    ingress: BitsPerSecond | None = None
    egress: BitsPerSecond | None = None
    step_overhead: Seconds | None = None
    """Fixed time of one server step; default the profile's."""


class OwnBackbone(Settings):
    """A backbone of one's own: a local directory, a hub name, or a random initialisation of a
    configuration.
    """

    only_for: ClassVar[OnlyFor] = {
        "seed": ("`random`", lambda settings: settings.random is not None)
    }
    path: ModelFolder | None = None
    hub: HubModel | None = None
    random: dict[str, Any] | None = None
    layers: int | None = Field(None, ge=1)
    """Keep only the first so many layers."""
    seed: int = 0


class CostAs(Settings):
    """Let the clock charge for another architecture than the one that learns; every result then
    says so.
    """

    backbone: str | dict[str, str]
    """One architecture for all, or learning backbone -> costed architecture."""
    tokens: int | None = Field(None, ge=1)
    """Charge every text at this length instead of its own."""


class Over(Settings):
    """One of the scenario's own settings, and the values at which everything is compared."""

    key: str
    """A dotted path, e.g. `task.partition.alpha`."""
    values: list[Any] = Field(min_length=1)


class Tune(Settings):
    """Every method's own dials, chosen on texts held out of training with the same number of runs
    for each method.
    """

    budget: int = Field(3, ge=1)
    """Runs that a method gets; of a larger grid so many combinations are drawn."""
    validation: int = Field(ge=1)
    """Texts of the training part that no device holds."""
    dials: dict[str, dict[str, Annotated[list[Any], Field(min_length=1)]]]
    """Label -> setting of that method -> values to try."""


class Compare(Settings):
    """Which methods `mobifleet compare` runs on this scenario, and what it sets them against."""

    methods: dict[Label, AnyMethod] = Field(min_length=1)
    """Label -> settings of a method."""
    seeds: int = Field(1, ge=1)
    """From the scenario's own on; `--seeds` goes before it."""
    ours: str | None = None
    """The label whose reductions against the best other one are reported; default the first that
    is no reference.
    """
    baselines: list[str] | None = None
    """The labels that they are taken against (the best of each column); default all others."""
    reference: str | None = None
    """The label that ratios are taken to; default `ours`."""
    target: float | None = Field(None, gt=0)
    """Common accuracy for the second table; default `stop.target`."""
    over: Over | None = None
    """Compare at each value of one setting, e.g. of the skew of the data."""
    tune: Tune | None = None
    """Choose every method's dials before the second table."""
    claims: dict[
        Literal["time_s", "flop", "communication_bytes", "peak_memory_bytes", "energy_j"],
        Annotated[float, Field(ge=0, lt=1)],
    ] = {}
    """Reductions that a paper reports, to be drawn beside those measured."""

    @property
    def label_of_ours(self) -> str:
        """The label that `ours` is, or is by default."""
        if self.ours is not None:
            return self.ours
        own = (label for label, method in self.methods.items() if not method.is_reference)
        return next(own, next(iter(self.methods)))


class Stop(Settings):
    """When to stop, besides when all is uploaded and all granted updates are done."""

    target: float | None = Field(None, gt=0)
    """Stop once the fleet's accuracy, or whatever `task.metric` says, reaches this."""
    horizon: Seconds | None = Field(None, gt=0)
    """Stop at this virtual time, whatever is under way."""


class Scenario(Settings):
    """One study: which task, which fleet, which links, which method, from which seed."""

    only_for: ClassVar[OnlyFor] = {
        "cells": (
            "groups of the fleet with a `cell` or `mobility`",
            lambda s: any(group.cell or group.mobility for group in s.fleet),
        )
    }
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)
    description: str = ""
    seed: int = Field(0, ge=0)
    task: TaskSettings
    backbones: dict[str, OwnBackbone] = {}
    fleet: list[GroupSettings] = Field(min_length=1)
    links: LinkSettings = LinkSettings()
    cells: dict[str, CellSettings] = {}
    traces: dict[str, TraceSettings | FilePath] = {}
    """Capacity over time of `ingress`, `egress`, `<cell>/up` or `<cell>/down`: times and rates, or
    a file of them.
    """
    server: ServerSettings = ServerSettings()
    arrivals: AnyJoin = AtOnce(kind="at-once")
    devices: Varying | None = None
    """What changes on devices while they work: heat, background load, battery, memory; by default
    nothing.
    """
    availability: AnyAvailability | None = None
    """When devices are on once they have joined; by default always."""
    dropout: DropOut | None = None
    """Devices that leave for good, in the middle of whatever they do; by default nobody."""
    fresh_data: AnyData = DataPresent(kind="present")
    method: AnyMethod
    cost_as: CostAs | None = None
    evaluate_every: int = Field(25, ge=1)
    """Server updates between two evaluations on the held-out texts (an observation: it takes no
    virtual time). A method's own `evaluate_every` goes before it; it goes before the default of a
    method that has one.
    """
    evaluate_growth: float | None = Field(None, gt=1, le=10)
    """Evaluate once virtual time has grown by this factor since the last evaluation, whatever
    `evaluate_every` says: as often for each method. A comparison has 1.1 unless it is set.
    """
    out_of_memory: Literal["error", "record"] = "error"
    """A backbone that does not fit its device: refuse the scenario, or let that device fail and
    record it.
    """
    jitter: bool = True
    """Draw each piece of work's measured variation; without it equal work always takes equal time.
    """
    stop: Stop = Stop()
    compare: Compare | None = None
    _folder: Path = PrivateAttr(default=Path())

    @property
    def folder(self) -> Path:
        """Where relative paths start: the folder of the file that the scenario was loaded from, the
        working directory for one made in Python.
        """
        return self._folder

    @model_validator(mode="after")
    def _looks_of_methods(self) -> Scenario:
        """A method that has an `evaluate_every` and does not set it takes the scenario's, where
        that is set.
        """
        if "evaluate_every" in self.model_fields_set:
            self.__dict__["method"] = _looking(self.method, self.evaluate_every)
            methods = {} if self.compare is None else self.compare.methods
            for label, method in methods.items():
                methods[label] = _looking(method, self.evaluate_every)
        return self

    def ignored(self) -> Iterator[tuple[tuple[str, ...], str]]:
        """What the scenario says of its texts and its method does not heed: (where, what)."""
        own = f"is not heeded by {self.method.kind}"
        if self.fresh_data.kind != "present" and not getattr(
            self.method, "takes_texts_as_they_come", False
        ):
            yield ("fresh_data",), f"{own}, which has all texts from the start: leave it out"
        if self.task.drift is not None and not getattr(self.method, "takes_texts_in_order", False):
            yield ("task", "drift"), f"{own}, which shuffles the texts of a device: leave it out"
        methods = [self.method, *(self.compare.methods.values() if self.compare else ())]
        if not any(map(_may_read_of_classes, methods)):
            for key in ("public", "label_texts", "label_words"):
                if getattr(self.task, key):
                    yield ("task", key), f"{own}: leave it out"

    def renamed(self) -> Iterator[str]:
        """What it says by an old name, in words."""
        methods = [("method", self.method)]
        if self.compare:
            methods += [(f"compare.methods.{n}", one) for n, one in self.compare.methods.items()]
        for where, settings in methods:
            if isinstance(settings, RenamedSettings):
                for old, now in settings.renamed():
                    yield f"{where}.{old} is called {now} now: say that"
        if self.compare is None or self.compare.tune is None:
            return
        for label, dials in self.compare.tune.dials.items():
            for old in dials:
                if (now := name_now(type(self.compare.methods[label]), old)) != old:
                    yield f"compare.tune.dials.{label}.{old} is called {now} now: say that"

    def recall_names(self) -> None:
        """Let names of code mean what they meant when this was loaded."""
        registry.recall(self.method, *(self.compare.methods.values() if self.compare else ()))
        if isinstance(how := self.task.partition, OwnPartition):
            partitions.recall(how.function, how._divide)

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, dump: Callable[[Scenario], dict[str, Any]]) -> dict[str, Any]:
        """A scenario that leaves a later section out keeps the digest that it had before there was
        one.
        """
        later = {"devices", "availability", "dropout", "evaluate_growth"}
        return {
            key: value for key, value in dump(self).items() if key not in later or value is not None
        }

    @property
    def own_backbones(self) -> dict[str, dict[str, Any]]:
        """The scenario's own backbones as plain dictionaries."""
        return {name: own.model_dump() for name, own in self.backbones.items()}


def _may_read_of_classes(method: AnyMethod) -> bool:
    """Whether a method may read public texts and what is said of classes: none of ours that has no
    own prediction of a backbone.
    """
    is_ours = type(method).__module__.startswith("sim.methods.")
    return not is_ours or "backbone_prediction" in type(method).model_fields


def _looking(method: AnyMethod, every: int) -> AnyMethod:
    """A method's settings with another default for `evaluate_every`, if they have one that nobody
    has set.
    """
    if (
        "evaluate_every" not in type(method).model_fields
        or "evaluate_every" in method.model_fields_set
    ):
        return method
    made: AnyMethod = type(method).model_construct(
        method.model_fields_set, **{**dict(method), "evaluate_every": every}
    )
    return made


def _may_name(methods: Any) -> None:
    """Let scenarios name these methods: the union of their settings, told apart by `kind`."""
    Compare.model_fields["methods"].annotation = dict[
        Label, Annotated[methods, Field(discriminator="kind")]
    ]
    field = Scenario.model_fields["method"]
    field.annotation, field.discriminator = methods, "kind"
    for model in (Compare, Scenario):
        if model.__pydantic_complete__:  # else it is built when it is first used
            model.model_rebuild(force=True)
    forget_schemas()


registry.on_change(_may_name)
