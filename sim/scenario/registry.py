"""Which methods a scenario may name: ours, those of installed packages (entry points of the group
`mobifleet.methods`), those that Python code registers, and those in a file of the user's.

A scenario's `method.kind` is a registered name, `my_file.py:MyMethod` (beside the scenario) or
`my_package.module:MyMethod`. The last two run code that the scenario names, and a scenario is data:
they need `--allow-code`, or `allow_code=True` in Python.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

from pydantic import create_model
from pydantic.errors import PydanticUserError

from inputs.files import first_line
from sim.scenario.own_code import MethodError, code_of, entry_point, from_code, named_code, note
from sim.scenario.settings import RENAMED, Settings

OURS = "sim.methods"  # registers our own; by name, as packages of others are
GROUP = "mobifleet.methods"
PARTS = {
    "Config": "its settings, a class derived from sim.scenario.settings.Settings",
    "device": "a generator method device(self, device): what a device does",
    "server": "a generator method server(self, server): what the server does",
    "peak_bytes": "a method peak_bytes(self, device): the most memory it takes on the device",
    "delivery_bytes": "a method delivery_bytes(self, device): what it must download to predict",
}
"""What a class must have to be a method, and what that is."""
CALLS = {
    "": "config, world",
    "device": "self, device",
    "server": "self, server",
    "peak_bytes": "self, device",
    "delivery_bytes": "self, device",
}
"""With what the class and its parts are called."""


@dataclass(frozen=True)
class Registration:
    """A method under one of its names, with the settings that go by this name."""

    method: Any
    settings: type[Settings]


M = TypeVar("M", bound=type)

_known: dict[str, Registration] = {}
"""What each name means now."""
_methods: dict[type[Settings], Any] = {}
"""Whose settings they are, of all that any name has meant."""
_listeners: list[Callable[[Any], None]] = []


def register(method: M, kind: str | None = None) -> M:
    """Let scenarios name a method: by the `kind` of its settings, or by `kind`, which is needed
    where these have none. Returns the class, so that it may stand above one as a decorator.

    Raises MethodError, naming the part, for a class that lacks a part of a method or whose name is
    taken.

        mobifleet.register(MyMethod, "my-method")
    """
    _with_ours()
    settings = _settings_of(method)
    field = settings.model_fields.get("kind")
    kinds = get_args(field.annotation) if field is not None else ()
    if kind is not None and kind not in kinds:
        kinds, settings = (kind,), _of_kind(settings, kind)
    if not kinds:
        raise MethodError(f"{method.__qualname__}.Config has no `kind`: say one with `kind=...`")
    for name in kinds:
        if not re.fullmatch(r"\w[\w.+-]*", name):
            raise MethodError(f"{name!r} is no name for a method: letters, digits, `.`, `-`, `_`")
        if name in _known and _identity(_known[name].method) != _identity(method):
            raise MethodError(f"{name} is {_known[name].method.__qualname__} already")
    _name({name: Registration(method, settings) for name in kinds})
    return method


def known() -> dict[str, Registration]:
    """All registered methods by name; those of installed packages are looked for here."""
    _with_ours()
    for point in entry_points(group=GROUP):
        if point.name not in _known:
            register(entry_point(point), point.name)
    return dict(_known)


def method_of(settings: Any) -> Any:
    """The method class whose settings these are."""
    if type(settings) in _methods:
        return _methods[type(settings)]
    return known()[settings.kind].method


def on_change(listener: Callable[[Any], None]) -> None:
    """Tell, now and after every registration, the union of all methods' settings."""
    _with_ours()
    _listeners.append(listener)
    listener(_any_settings())


def register_named(
    scenario: Any, folder: Path, allow_code: bool
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Register the methods that a scenario's data names and nobody has registered yet; yields
    (where, what is wrong) for those that cannot be.
    """
    for where, kind in _kinds(scenario):
        if ":" not in kind:
            if kind not in _known:
                known()  # perhaps of a package; an unknown name is told with all others
            continue
        if not allow_code:
            yield where, f"{kind} is code, and a scenario is data: say --allow-code to run it"
            continue
        try:
            _name_code(kind, named_code(kind, folder))
        except MethodError as error:
            yield where, str(error)


def recall(*settings: Any) -> None:
    """Let the names of these settings mean what they meant when they were loaded."""
    _name({one.kind: Registration(method_of(one), type(one)) for one in settings})


def _name_code(kind: str, method: Any) -> None:
    """Let the name of code mean a class, which is another one when it is found in another folder,
    or its file has changed.
    """
    if kind not in _known or _known[kind].method is not method:
        _name({kind: Registration(method, _of_kind(_settings_of(method), kind))})


def _name(registrations: Mapping[str, Registration]) -> None:
    new = {name: one for name, one in registrations.items() if _known.get(name) != one}
    for one in new.values():
        _methods[one.settings] = one.method
    _known.update(new)
    if new:
        _notify()


def _notify() -> None:
    for listener in _listeners:
        listener(_any_settings())


def _with_ours() -> None:
    importlib.import_module(OURS)  # once, whoever registers first


def _kinds(scenario: Any) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if not isinstance(scenario, Mapping):
        return
    spots: list[tuple[tuple[str, ...], Any]] = [(("method",), scenario.get("method"))]
    compare = scenario.get("compare")
    methods = compare.get("methods") if isinstance(compare, Mapping) else None
    if isinstance(methods, Mapping):
        spots += [(("compare", "methods", label), given) for label, given in methods.items()]
    for where, given in spots:
        if isinstance(given, Mapping) and isinstance(given.get("kind"), str):
            yield (*where, "kind"), given["kind"]


def _of_kind(settings: type[Settings], kind: str) -> type[Settings]:
    """The same settings under a name of their own."""
    literal: Any = Literal[kind]
    made = create_model(
        settings.__name__, __base__=(_Sent, settings), __doc__=settings.__doc__, kind=(literal, ...)
    )
    return cast("type[Settings]", made)


class _Sent(Settings):
    """Settings that reach another process of the same run by their method: their class was made
    here, and has no name to import.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        settings: Any = self
        code = code_of(method_of(settings))
        return _received, (code, settings.kind), self.__getstate__()


def _received(code: Any, kind: str) -> Any:
    """Settings of that kind, still empty; registers their method."""
    _with_ours()
    _name_code(kind, from_code(code))
    settings = _known[kind].settings
    return settings.__new__(settings)


def _settings_of(method: Any) -> type[Settings]:
    """The method's `Config`; MethodError for what is no method."""
    for part, what in PARTS.items():
        if not callable(getattr(method, part, None)):
            name = getattr(method, "__name__", repr(method))
            raise MethodError(f"{name} is no method: it has no `{part}` ({what})")
    settings: Any = method.Config
    if not (isinstance(settings, type) and issubclass(settings, Settings)):
        raise MethodError(f"{method.__name__}.Config is not derived from Settings")
    for old, now in RENAMED.items():
        if {old, now} <= set(settings.model_fields):
            raise MethodError(f"{method.__name__}.Config.{old} is called {now} now")
    if not method.__module__.startswith(f"{OURS}."):
        note(method)
        _check_fits(method, settings)
    return settings


def _check_fits(method: Any, settings: type[Settings]) -> None:
    """MethodError for what would fail only later, and for everybody: settings that cannot be read
    at all, or lack what a base class asks of them, and verbs that take something else.
    """
    for base in method.__mro__:
        if "Config" in vars(base) and not issubclass(settings, base.Config):
            raise MethodError(
                f"{method.__name__}.Config has to be derived from {base.__name__}.Config, as "
                f"{method.__name__} is from {base.__name__}"
            )
    for part, called in CALLS.items():
        try:
            inspect.signature(getattr(method, part) if part else method).bind(*called.split(", "))
        except TypeError as error:
            call = f"{method.__name__}.{part}({called})" if part else f"{method.__name__}({called})"
            raise MethodError(f"it has to be called as {call}: {error}") from error
    try:
        settings.model_rebuild(force=True)
    except (PydanticUserError, NameError, TypeError) as error:
        raise MethodError(f"{method.__name__}.Config: {first_line(error)}") from error


def _identity(method: Any) -> tuple[str, str]:
    return method.__module__, method.__qualname__


def _any_settings() -> Any:
    settings = list(dict.fromkeys(entry.settings for entry in _known.values()))
    return functools.reduce(operator.or_, settings)
