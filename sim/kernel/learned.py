"""Results of learning, named by the history that led to them, so that an interrupted run can take
them up again.

A piece of learning is a pure function, so what it gives is known by its name: a digest of the
function's name and of its arguments, into which results of other pieces go by their own names.
Methods and learners pass `Learned` on unread.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np


class Learned:
    """One result: its key and, once its piece has run, its value. `future` is that of the piece's
    running, `make` another way to its value; `revive` makes the value of what its `saved()` gives,
    where a checkpoint cannot write it as it is.
    """

    __slots__ = ("__weakref__", "_make", "_value", "future", "key", "revive")

    def __init__(self, key: str, revive: Callable[[Any], Any] | None = None) -> None:
        self.key, self.revive = key, revive
        self.future: Future | None = None
        self._make: Callable[[Learned], None] | None = None

    @classmethod
    def given(cls, key: str, value: Any) -> Learned:
        """A value that every run makes by itself, and no checkpoint needs."""
        made = cls(key)
        made.set(value)
        return made

    @property
    def value(self) -> Any:
        """The value, waited for, fetched or computed if it is not there yet; raises what went wrong
        with its piece.
        """
        if not hasattr(self, "_value"):
            if self.future is not None:
                self.future.result()
            elif self._make is not None:
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
    def is_there(self) -> bool:
        """Whether there is a value, or a way to it."""
        return hasattr(self, "_value") or self.future is not None or self._make is not None

    def set(self, value: Any) -> None:
        """Give it its value."""
        self._value = value

    def set_source(self, make: Callable[[Learned], None]) -> None:
        """Give it a way to its value, taken when it is asked for."""
        self._make = make

    def drop(self) -> None:
        """Take away its value and the way to it."""
        self.future = self._make = None
        if hasattr(self, "_value"):
            del self._value


class Taken:
    """An argument whose value the piece may change or wants for itself alone: nobody else has it
    from then on.
    """

    def __init__(self, learned: Learned) -> None:
        self.learned, self.key = learned, learned.key

    def take(self) -> Any:
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
        self, function: Callable[..., Any], arguments: Sequence[Any], stored: Sequence[bool]
    ) -> None:
        self._function, self._arguments, self._stored = function, arguments, stored
        self._results: list[weakref.ref[Learned]] = []

    def results(self, key: str, revive: Callable[[Any], Any] | None) -> list[Learned]:
        """What it will give."""
        ends = (
            [""]
            if len(self._stored) == 1
            else [f".{number}" for number in range(len(self._stored))]
        )
        made = [
            Learned(key + end, revive if number == 0 else None) for number, end in enumerate(ends)
        ]
        for learned, is_stored in zip(made, self._stored, strict=True):
            if not is_stored:
                learned.set_source(self.compute)
        self._results = [weakref.ref(learned) for learned in made]
        return made

    def run(self) -> None:
        """Compute the results."""
        arguments = self._arguments
        if all(self._stored):
            self._arguments = ()
        made = self._function(*map(with_values, arguments))
        del arguments
        for result, value in zip(
            self._results, (made,) if len(self._stored) == 1 else made, strict=True
        ):
            if (learned := result()) is not None:
                learned.set(value)

    def compute(self, _: Learned) -> None:
        """Run it for one of its results, in a run that had left it out."""
        self.run()

    def skip(self, fetch: Callable[[Learned], None]) -> None:
        """Do not run it: what was stored is fetched when it is asked for, the rest computed
        then.
        """
        for argument in self._arguments:
            if isinstance(argument, Taken):
                argument.learned.drop()
        for result, is_stored in zip(self._results, self._stored, strict=True):
            if is_stored:
                result().set_source(fetch)
        if all(self._stored):
            self._arguments = ()


def with_values(argument: Any) -> Any:
    """The argument with the values of all results in it."""
    if isinstance(argument, Learned):
        return argument.value
    if isinstance(argument, Taken):
        return argument.take()
    if isinstance(argument, tuple) and hasattr(argument, "_fields"):
        return type(argument)(*map(with_values, argument))
    if isinstance(argument, list | tuple):
        return type(argument)(map(with_values, argument))
    if isinstance(argument, dict):
        return {name: with_values(value) for name, value in argument.items()}
    return argument


def joined(result: Any) -> Any:
    """What a verb gave, at the virtual end of its work: the pieces of what is learned have run, or
    raise what went wrong (those that were left out stay so); a function is called, for what is to
    happen only then.
    """
    if isinstance(result, Learned) and result.is_new:
        result.future.result()
    elif isinstance(result, tuple):
        for one in result:
            joined(one)
    return result() if callable(result) else result


def key_of(function: Callable[..., Any], arguments: Sequence[Any]) -> str:
    """The name of what a function gives for these arguments."""
    digest = hashlib.blake2b(function.__qualname__.encode(), digest_size=16)
    _feed(digest.update, arguments)
    return digest.hexdigest()


def _feed(update: Callable[[bytes], None], argument: Any) -> None:
    if isinstance(argument, Learned | Taken):
        update(b"<" + argument.key.encode())
    elif isinstance(argument, np.ndarray):
        update(f"[{argument.dtype}{argument.shape}".encode() + argument.tobytes())
    elif isinstance(argument, list | tuple):
        update(f"({len(argument)}".encode())
        for one in argument:
            _feed(update, one)
    elif isinstance(argument, Mapping):
        _feed(update, list(argument.items()))
    elif callable(argument):
        update(b"!" + argument.__qualname__.encode())
    elif type(argument).__repr__ is object.__repr__:
        raise TypeError(f"a {type(argument).__name__} has no name that another run would give it")
    else:
        update(b"|" + repr(argument).encode())
