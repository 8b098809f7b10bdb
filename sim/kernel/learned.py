"""Results of learning, named by the history that led to them, so that an interrupted run can take
them up again.

A piece of learning is a pure function, so what it gives is known by its name: a digest of the
function's name and of its arguments, into which results of other pieces go by their own names.
Methods and learners pass `Learned` on unread.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar, cast, runtime_checkable

import numpy as np

Value = TypeVar("Value")
Value_co = TypeVar("Value_co", covariant=True)
Result = TypeVar("Result")

_PLAIN = frozenset({int, float, str, bool})
_making = threading.RLock()


@runtime_checkable
class Saveable(Protocol):
    """A value that a checkpoint cannot write as it is."""

    def saved(self) -> object:
        """What it can write instead, and `revive` makes the value of."""


class Learned(Generic[Value_co]):
    """One result: its key and, once its piece has run, its value. `future` is that of the piece's
    running, `make` another way to its value; `revive` makes the value of what its `saved()` gives,
    where a checkpoint cannot write it as it is.
    """

    __slots__ = ("__weakref__", "_make", "_value", "future", "key", "revive")

    _value: Value_co

    def __init__(self, key: str, revive: Callable[..., object] | None = None) -> None:
        self.key, self.revive = key, revive
        self.future: Future[None] | None = None
        self._make: Callable[[Learned[object]], None] | None = None

    @staticmethod
    def given(key: str, value: Value) -> Learned[Value]:
        """A value that every run makes by itself, and no checkpoint needs."""
        made: Learned[Value] = Learned(key)
        made.set(value)
        return made

    @property
    def value(self) -> Value_co:
        """The value, waited for, fetched or computed if it is not there yet; raises what went wrong
        with its piece.
        """
        if not hasattr(self, "_value"):
            if self.future is not None:
                self.future.result()
            else:
                with _making:  # pieces on several threads may ask for it
                    if self._make is not None and not hasattr(self, "_value"):
                        self._make(self)
        try:
            return self._value
        except AttributeError:
            raise LookupError(f"{self.key} was taken by a piece that changed it") from None

    @property
    def is_new(self) -> bool:
        """Whether this run computes it, rather than the one that it resumes."""
        return self.future is not None

    @property
    def waits(self) -> bool:
        """Whether its piece has not run yet, and runs only when it is asked for."""
        return isinstance(self.future, Waiting) and not self.future.done()

    @property
    def is_there(self) -> bool:
        """Whether there is a value, or a way to it."""
        return hasattr(self, "_value") or self.future is not None or self._make is not None

    def set(self, value: object) -> None:
        """Give it its value."""
        # of the type that the piece's function says: who hands it over has not looked
        self._value = cast(Value_co, value)

    def saved(self) -> object:
        """What a checkpoint can write of the value."""
        value = self.value
        if self.revive is None:
            return value
        assert isinstance(value, Saveable)
        return value.saved()

    def set_source(self, make: Callable[[Learned[object]], None]) -> None:
        """Give it a way to its value, taken when it is asked for."""
        self._make = make

    def drop(self) -> None:
        """Take away its value and the way to it."""
        self.future = self._make = None
        if hasattr(self, "_value"):
            del self._value


class Waiting(Future[None]):
    """Of a piece that waits with others: when it is asked, all of them are computed."""

    def __init__(self, compute: Callable[[], None]) -> None:
        super().__init__()
        self._compute = compute

    def result(self, timeout: float | None = None) -> None:
        """None, once it is computed; raises what went wrong."""
        if not self.done():
            self._compute()
        return super().result(0)  # it is there, or never will be

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What went wrong, once it is computed."""
        if not self.done():
            self._compute()
        return super().exception(0)


class Taken:
    """An argument whose value the piece may change or wants for itself alone: nobody else has it
    from then on.
    """

    def __init__(self, learned: Learned[object]) -> None:
        self.learned, self.key = learned, learned.key

    def take(self) -> object:
        """The value, which is dropped here."""
        value = self.learned.value
        self.learned.drop()
        return value


class Piece:
    """One execution of a pure function, with as many results as `stored` has entries; what nobody
    holds any more is let go.

    A result that is not stored cannot be written into a checkpoint, or need not be: while somebody
    holds it, it keeps the piece's arguments, of which another run computes it again.
    """

    def __init__(
        self, function: Callable[..., object], arguments: Sequence[object], stored: Sequence[bool]
    ) -> None:
        self._function, self._arguments, self._stored = function, arguments, stored
        self._results: list[weakref.ref[Learned[object]]] = []

    def results(self, key: str, revive: Callable[..., object] | None) -> list[Learned[object]]:
        """What it will give."""
        ends = (
            [""]
            if len(self._stored) == 1
            else [f".{number}" for number in range(len(self._stored))]
        )
        made: list[Learned[object]] = [
            Learned(key + end, revive if number == 0 else None) for number, end in enumerate(ends)
        ]
        for learned, is_stored in zip(made, self._stored, strict=True):
            if not is_stored:
                learned.set_source(self.compute)
        self._results = [weakref.ref(learned) for learned in made]
        return made

    def run(self) -> None:
        """Compute the results."""
        self.settle(self._function(*self.taken_arguments()))

    def taken_arguments(self) -> list[object]:
        """What the function is called with; it is held no longer, unless a result is not stored."""
        arguments = self._arguments
        if all(self._stored):
            self._arguments = ()
        return [with_values(argument) for argument in arguments]

    def settle(self, made: object) -> None:
        """Give the results what the function gave."""
        values = made if len(self._stored) > 1 and isinstance(made, Iterable) else (made,)
        for result, value in zip(self._results, values, strict=True):
            if (learned := result()) is not None:
                learned.set(value)

    def compute(self, _: Learned[object]) -> None:
        """Run it for one of its results, in a run that had left it out."""
        self.run()

    def skip(self, fetch: Callable[[Learned[object]], None]) -> None:
        """Do not run it: what was stored is fetched when it is asked for, the rest computed
        then.
        """
        for argument in self._arguments:
            if isinstance(argument, Taken):
                argument.learned.drop()
        for result, is_stored in zip(self._results, self._stored, strict=True):
            if is_stored and (learned := result()) is not None:
                learned.set_source(fetch)
        if all(self._stored):
            self._arguments = ()


def with_values(argument: object) -> object:
    """The argument with the values of all results in it."""
    if type(argument) in _PLAIN:  # most are
        return argument
    if isinstance(argument, Learned):
        return argument.value
    if isinstance(argument, Taken):
        return argument.take()
    if isinstance(argument, tuple) and (make := getattr(argument, "_make", None)):  # a named one
        return make(map(with_values, argument))
    if isinstance(argument, list | tuple):
        if _is_plain(argument):
            return argument[:]
        return type(argument)(map(with_values, argument))
    if isinstance(argument, dict):
        return {name: with_values(value) for name, value in argument.items()}
    return argument


def wait_for(argument: object) -> None:
    """Return when every piece has run whose results are in the argument, well or not."""
    if isinstance(argument, Taken):
        argument = argument.learned
    if isinstance(argument, Learned) and argument.future is not None:
        argument.future.exception()
    elif isinstance(argument, list | tuple):
        for one in argument:
            wait_for(one)
    elif isinstance(argument, dict):
        wait_for(list(argument.values()))


def key_of(function: Callable[..., object], arguments: Sequence[object]) -> str:
    """The name of what a function gives for these arguments."""
    digest = hashlib.blake2b(function.__qualname__.encode(), digest_size=16)
    _feed(digest.update, arguments)
    return digest.hexdigest()


def _is_plain(several: Sequence[object]) -> bool:
    return _PLAIN.issuperset(map(type, several))


def _feed(update: Callable[[bytes], None], argument: object) -> None:
    if type(argument) in _PLAIN:
        update(b"|" + repr(argument).encode())
    elif isinstance(argument, Learned | Taken):
        update(b"<" + argument.key.encode())
    elif isinstance(argument, np.ndarray):
        update(f"[{argument.dtype}{argument.shape}".encode() + argument.tobytes())
    elif isinstance(argument, list | tuple) and _is_plain(argument):
        update(repr(tuple(argument)).encode())  # a list in a note is a tuple no more
    elif isinstance(argument, list | tuple):
        update(f"({len(argument)}".encode())
        for one in argument:
            _feed(update, one)
    elif isinstance(argument, Mapping):
        _feed(update, list(argument.items()))
    elif callable(argument):
        function: Callable[..., object] = argument
        update(b"!" + function.__qualname__.encode())
    elif type(argument).__repr__ is object.__repr__:
        raise TypeError(f"a {type(argument).__name__} has no name that another run would give it")
    else:
        update(b"|" + repr(argument).encode())
