"""Which methods a scenario may name: ours, those of installed packages (entry points of the group
`mobifleet.methods`), those that Python code registers, and those in a file of the user's.

A scenario's `method.kind` is a registered name, `my_file.py:MyMethod` (beside the scenario) or
`my_package.module:MyMethod`. The last two run code that the scenario names, and a scenario is data:
they need `--allow-code`, or `allow_code=True` in Python.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import operator
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar, cast, get_args

from pydantic import create_model

from inputs.files import located
from sim.scenario.settings import RENAMED, Settings

OURS = "sim.methods"  # registers our own; by name, as packages of others are
GROUP = "mobifleet.methods"
PARTS = {
    "Config": "its settings, a class derived from sim.scenario.settings.Settings",
    "device": "a generator method device(self, device): what a device does",
    "server": "a generator method server(self, server): what the server does",
    "peak_bytes": "a method peak_bytes(self, device): the most memory it takes on the device",
}
"""What a class must have to be a method, and what that is."""


class MethodError(ValueError):
    """What a scenario or a caller names as a method is none; the message says what is missing."""


@dataclass(frozen=True)
class Registration:
    """A method under one of its names, with the settings that go by this name."""

    method: Any
    settings: type[Settings]


M = TypeVar("M", bound=type)

_MODULE = "mobifleet_method_"  # begins the name of what a file of a user's becomes
_known: dict[str, Registration] = {}
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
        if name in _known and _identity(_known[name].method) != _identity(method):
            raise MethodError(f"{name} is {_known[name].method.__qualname__} already")
        _known[name] = Registration(method, settings)
    _notify()
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
    return (_known if settings.kind in _known else known())[settings.kind].method


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
        if kind in _known:
            continue
        if ":" not in kind:
            known()  # perhaps of an installed package; an unknown name is told with all others
            continue
        if not allow_code:
            yield where, f"{kind} is code, and a scenario is data: say --allow-code to run it"
            continue
        try:
            register(named_code(kind, folder), kind)
        except MethodError as error:
            yield where, str(error)


def file_of(kind: str) -> str | None:
    """The file that a method's name says it is in; None for another kind of name."""
    path, colon, _ = kind.rpartition(":")
    return path if colon and path.endswith(".py") else None


def entry_point(point: EntryPoint) -> Any:
    """What an installed package brings; MethodError where that cannot be imported."""
    try:
        return point.load()
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise MethodError(f"entry point {point.name!r} of {point.group}: {what}") from error


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


def named_code(
    kind: str, folder: Path, is_wanted: Callable[[Any], bool] = inspect.isclass, what: str = "class"
) -> Any:
    """What `place:Name` names, a class or `what` is wanted; MethodError where it is none."""
    place, _, name = kind.rpartition(":")
    module = _from_file(located(place, folder)) if file_of(kind) else _from_package(place)
    found = getattr(module, name, None)
    if not is_wanted(found):
        others = [n for n, value in vars(module).items() if is_wanted(value)]
        near = get_close_matches(name, others, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise MethodError(f"{place} has no {what} {name}{hint}")
    return found


def code_of(code: Any) -> Any:
    """What to send to another process of the same run for a class or function: itself, by its
    name, or where it stands if its module is a file of the user's.
    """
    if not code.__module__.startswith(_MODULE):
        return code
    return f"{sys.modules[code.__module__].__file__}:{code.__qualname__}"


def from_code(
    code: Any, is_wanted: Callable[[Any], bool] = inspect.isclass, what: str = "class"
) -> Any:
    """What `code_of` was given in the other process, which was allowed to run it."""
    return named_code(code, Path(), is_wanted, what) if isinstance(code, str) else code


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise MethodError(f"there is no file {path}")
    mark = hashlib.blake2b(str(path.resolve()).encode(), digest_size=6).hexdigest()
    name = f"{_MODULE}{path.stem}_{mark}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # pydantic looks there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise MethodError(_load_failure(error, path)) from error
    return module


def _from_package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise MethodError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error


def _load_failure(error: Exception, path: Path) -> str:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    at = "" if line is None else f", line {line}"
    return f"{path}{at}: {type(error).__name__}: {error}"


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
        code = code_of(_known[settings.kind].method)
        return _received, (code, settings.kind), self.__getstate__()


def _received(code: Any, kind: str) -> Any:
    """Settings of that kind, still empty; registers their method."""
    if kind not in _known:
        _with_ours()
        register(from_code(code), kind)
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
    return settings


def _identity(method: Any) -> tuple[str, str]:
    return method.__module__, method.__qualname__


def _any_settings() -> Any:
    settings = list(dict.fromkeys(entry.settings for entry in _known.values()))
    return functools.reduce(operator.or_, settings)


def _notify() -> None:
    for listener in _listeners:
        listener(_any_settings())
