"""Which functions may divide the texts besides our partitions: those of installed packages (entry
points of the group `mobifleet.partitions`), those that Python code registers, and those in a file
of the user's, which a scenario names as it names a method's (`registry.py`).

Such a function is called as those in `learning/data/partition.py` are,
`divide(labels, n_clients, rng, min_size, **settings)`, and gives an array of indices a client.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from sim.scenario.own_code import MethodError, code_of, entry_point, from_code, named_code, note

GROUP = "mobifleet.partitions"
WHERE = ("task", "partition", "function")

_known: dict[str, Callable[..., Any]] = {}


def register_partition(divide: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Let scenarios name a function that divides texts: `partition: {kind: own, function: name}`.

    Raises MethodError for what is no function, and for a name that another one has.

        mobifleet.register_partition(by_length, "by-length")
    """
    if not callable(divide) or not hasattr(divide, "__qualname__"):
        raise MethodError(f"{divide!r:.60} is no function that divides texts")
    note(divide)
    if _known.setdefault(name, divide) is not divide:
        raise MethodError(f"{name} is {_known[name].__qualname__} already")
    return divide


def known() -> dict[str, Callable[..., Any]]:
    """All registered functions by name; those of installed packages are looked for here."""
    for point in entry_points(group=GROUP):
        if point.name not in _known:
            register_partition(entry_point(point), point.name)
    return dict(_known)


def find(name: str) -> Callable[..., Any] | None:
    """The function that a name means now; None for code that nobody has allowed to run."""
    return _known[name] if name in _known else known().get(name)


def allowed(divide: Callable[..., Any] | None, name: str) -> Callable[..., Any]:
    """The function that a name meant; MethodError for code that nobody has allowed to run."""
    if divide is None:
        raise MethodError(f"no function {name} is registered; `load` does it with --allow-code")
    return divide


def recall(name: str, divide: Callable[..., Any] | None) -> None:
    """Let a name mean what it meant when a scenario was loaded."""
    if divide is not None:
        _known[name] = divide


def register_named(
    scenario: Any, folder: Path, allow_code: bool
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Register the function that a scenario's data names; yields (where, what is wrong) if it
    cannot be.
    """
    name = scenario
    for key in WHERE:
        name = name.get(key) if isinstance(name, Mapping) else None
    if not isinstance(name, str):
        return
    try:
        if ":" not in name:
            if name not in _known and name not in known():
                near = get_close_matches(name, _known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                yield WHERE, f"no function that divides texts is called {name!r}{hint}"
        elif not allow_code:
            yield WHERE, f"{name} is code, and a scenario is data: say --allow-code to run it"
        else:
            _known[name] = named_code(name, folder, inspect.isfunction, "function")
    except MethodError as error:
        yield WHERE, str(error)


def sent(divide: Callable[..., Any] | None) -> Any:
    """What another process of the same run needs to have the function, too."""
    return None if divide is None else code_of(divide)


def received(settings: Any, given: Mapping[str, Any], code: Any) -> Any:
    """Settings of that class; the function that they name is what `sent` gave."""
    if code is not None:
        _known[given["function"]] = from_code(code, inspect.isfunction, "function")
    return settings.model_validate(given)
