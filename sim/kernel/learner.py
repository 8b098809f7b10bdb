"""What learns: the calls that every learner answers to, and what stands for one in a dry run."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, ParamSpec, Protocol, TypeVar, cast, overload

from learning.cost.costs import Cost
from learning.metrics import Score
from sim.kernel.work import Result, Work

Scores = Mapping[str, Score | None]
"""What each backbone scores; None says that a model's predictions are not finite."""
ScoreKey = Literal["value", "loss"]
Part = Literal["test", "validation"]
"""The texts that a look is at: those to report on, or those to choose by."""


Arguments = ParamSpec("Arguments")


class Learner(Protocol):
    """What a method's learner is asked by the world; its verbs are its own."""

    @property
    def diverged(self) -> str | None:
        """What of the server's model is no longer finite: its loss, its weights."""

    @property
    def has_one_model(self) -> bool:
        """That of the server, rather than one on each device."""

    @property
    def predicts_untrained(self) -> bool:
        """Whether what is there before the first update has an accuracy worth the name."""

    @overload
    def work(
        self,
        cost: Cost,
        verb: Callable[Arguments, Callable[[], Result]],
        *args: Arguments.args,
        **more: Arguments.kwargs,
    ) -> Work[Result]: ...

    @overload
    def work(
        self,
        cost: Cost,
        verb: Callable[Arguments, Result],
        *args: Arguments.args,
        **more: Arguments.kwargs,
    ) -> Work[Result]:
        """A piece of work that takes time and begins `verb(*args)`."""

    def prepare(self) -> None:
        """Compute what is needed before the clock starts: no virtual time passes."""

    def evaluate(self, part: Part = "test") -> Scores:
        """What each backbone scores on texts that no device holds."""

    def personal(self) -> Scores:
        """What models that devices have of their own score on the test texts, by device."""

    def digest(self) -> str:
        """A digest of all that has been learned."""

    def save(self, folder: Path) -> None:
        """Write the trained model into `folder`."""


class RealLearner:
    """A learner whose work computes; derive from it, and add verbs.

    A verb runs at the virtual start of its work and only begins pieces of learning
    (`world.host.learn`), whose functions are pure; what it gives is passed on unread. So a resumed
    run need not compute what it has computed before, and no learner knows of it.
    """

    _diverged: str | None = None
    has_one_model = True

    @property
    def diverged(self) -> str | None:
        """What of the server's model a verb has found not to be finite: `_diverged`."""
        return self._diverged

    @property
    def predicts_untrained(self) -> bool:
        """Whether what is there before the first update has an accuracy: by default not."""
        return False

    @overload
    def work(
        self,
        cost: Cost,
        verb: Callable[Arguments, Callable[[], Result]],
        *args: Arguments.args,
        **more: Arguments.kwargs,
    ) -> Work[Result]: ...

    @overload
    def work(
        self,
        cost: Cost,
        verb: Callable[Arguments, Result],
        *args: Arguments.args,
        **more: Arguments.kwargs,
    ) -> Work[Result]: ...

    def work(
        self, cost: Cost, verb: Callable[..., object], *args: object, **more: object
    ) -> Work[object]:
        """A piece of work that takes time and begins `verb(*args, **more)`."""
        return Work(cost, functools.partial(verb, *args, **more))

    def prepare(self) -> None:
        """Nothing, unless a learner has something to compute beforehand."""

    def personal(self) -> Scores:
        """None: devices have the server's model."""
        return {}


class DryLearner:
    """Stands for a learner in a dry run: it has its verbs, and learns nothing.

    A verb that the learner does not have is an AttributeError, as it would be in a real run.
    """

    diverged: str | None = None
    has_one_model = True
    predicts_untrained = False
    state: object = None

    def __init__(self, learner: Callable[..., object]) -> None:
        self._learner = learner

    def __getattr__(self, verb: str) -> Callable[..., None]:
        if verb.startswith("_") or not callable(getattr(self._learner, verb, None)):
            raise AttributeError(f"{self._learner.__name__} has no verb {verb!r}")
        setattr(self, verb, _nothing)  # so that nobody asks again
        return _nothing

    def work(
        self, cost: Cost, verb: Callable[..., object], *args: object, **more: object
    ) -> Work[None]:
        """A piece of work that only takes time."""
        return Work(cost)

    def ingest(self, *what: object) -> bool:
        """Whatever comes can be used."""
        return True

    def keep(self, *what: object) -> bool:
        """Whatever comes is finite."""
        return True

    def prepare(self) -> None:
        """Nothing to prepare."""

    def evaluate(self, part: Part = "test") -> Scores:
        """Nothing to score."""
        return {}

    def personal(self) -> Scores:
        """Nothing to score."""
        return {}

    def digest(self) -> str:
        """Nothing learned."""
        return ""

    def save(self, folder: Path) -> None:
        """Nothing to save."""


def _nothing(*args: object, **more: object) -> None:
    """What a verb gives in a dry run."""


L = TypeVar("L")


class MaybeDry(Protocol):
    """A world, of which a learner's place asks only this."""

    dry: bool
    """Whether nothing learns."""


def learner_for(world: MaybeDry, learner: Callable[..., L], *args: object) -> L:
    """The world's learner: `learner(world, *args)`, or what stands for it in a dry run."""
    if world.dry:
        return cast(L, DryLearner(learner))
    return learner(world, *args)
