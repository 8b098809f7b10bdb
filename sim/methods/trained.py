"""What is trained beside the head, and the settings that belong to one kind of it alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_serializer

from learning.federated.local_training import charged_as
from sim.scenario.settings import OnlyFor, Settings

Head = Literal["linear", "dense"]

_LATER = {  # settings that came later, and what was done before them
    "head": "linear",
    "wire": "float32",
    "wire_down": "float32",
    "error_feedback": False,
    "differential_privacy": None,
    "target_modules": None,
    "optimiser": "adamw",
    "momentum": 0.0,
    "schedule": "constant",
    "adapters": "pfeiffer",
    "dropout": 0.0,
}


class HeadSettings(Settings):
    """Settings of whatever trains a head, or sends one."""

    head: Head = "linear"
    """Trained and sent with the rest: one linear map, or RoBERTa's (dense: a square map, tanh, a
    linear map), as in FedPETuning.
    """

    @model_serializer(mode="wrap")
    def _without_later(self, dump: Callable[[HeadSettings], dict[str, Any]]) -> dict[str, Any]:
        """Who leaves a later setting at a default that is what was done before keeps the digest."""
        fields = type(self).model_fields
        return {
            name: value
            for name, value in dump(self).items()
            if name not in _LATER or not (value == _LATER[name] == _plain(fields[name].default))
        }


def _plain(default: Any) -> Any:
    """As it is dumped: a wire of one part as that."""
    return default[0] if isinstance(default, tuple) and len(default) == 1 else default


class OptimiserSettings(Settings):
    """Which optimiser trains."""

    only_for: ClassVar[OnlyFor] = {
        "momentum": ("sgd", lambda settings: settings.optimiser == "sgd"),
    }
    optimiser: Literal["adamw", "sgd"] = "adamw"
    momentum: float = Field(0.0, ge=0, lt=1)
    """Of sgd."""

    @property
    def charged_as(self) -> str:
        """The entry of `learning.cost.costs.OPTIMISER_NUMBERS` that the optimiser's state has."""
        return charged_as(self.optimiser, self.momentum)


class TrainableSettings(HeadSettings):
    """Settings whose `peft` (or whose kind) says what is trained, with sizes of LoRA and
    adapters.
    """

    only_for: ClassVar[OnlyFor] = {
        **dict.fromkeys(
            ("rank", "alpha", "target_modules"),
            ("LoRA", lambda settings: settings.trains == "lora"),
        ),
        **dict.fromkeys(
            ("bottleneck", "adapters"),
            ("adapters", lambda settings: settings.trains == "adapter"),
        ),
        "gradient_checkpointing": (
            "what has layers to go back through",
            lambda settings: settings.trains != "head",
        ),
    }
    target_modules: (
        Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] | None
    ) = None
    """Names of the linear maps that LoRA is put beside, or `all-linear`; default what peft has for
    the architecture.
    """

    adapters: Literal["houlsby", "pfeiffer"] = "houlsby"
    """Two adapters a layer, after attention and after the feed-forward block, as in FedPETuning, or
    one, after the latter.
    """

    if TYPE_CHECKING:  # fields of every such settings, each with a default of its own
        peft: str  # where `trains` does not say it otherwise
        rank: int
        alpha: float
        bottleneck: int
        readout: str

    @property
    def trains(self) -> str:
        """lora, adapter, bitfit, full or head."""
        return self.peft

    @property
    def size(self) -> tuple[Any, ...]:
        """What of it tells the size of what is trained: what costs are counted with."""
        return self.rank, self.bottleneck, self.head, self.target_modules, self.adapters

    @property
    def classifier(self) -> tuple[Any, ...]:
        """What a `FederatedLearner` builds its `TrainableClassifier` of."""
        sizes = (self.rank, self.alpha, self.bottleneck)
        return self.trains, self.readout, *sizes, self.head, self.target_modules, self.adapters
