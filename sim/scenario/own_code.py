"""Code of the user's: in a file beside a scenario, `my_file.py:Name`, in a module,
`my_package.module:Name`, or of an installed package. Found and run here, and what it raises later
is told by its own lines.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

from inputs.files import FileProblem, first_line, is_ours, located, read_bytes

_MODULE = "mobifleet_method_"  # begins the name of what a file of a user's becomes
_sources: set[str] = set()
"""Where code that is not ours stands, as tracebacks name it."""
_homes: set[str] = set()
"""The modules of such code."""


class MethodError(ValueError):
    """What a scenario or a caller names as a method is none; the message says what is missing."""


class OwnCodeError(ValueError):
    """Code of the user's raised something; the message is `file, line 7: what`."""


def file_of(kind: str) -> str | None:
    """The file that a name of code says it is in; None for another kind of name."""
    path, colon, _ = kind.rpartition(":")
    return path if colon and path.endswith(".py") else None


def named_code(
    kind: str, folder: Path, is_wanted: Callable[[Any], bool] = inspect.isclass, what: str = "class"
) -> Any:
    """What `place:Name` names, a class or `what` is wanted; MethodError where it is none.

    A file is run once for each text that it holds: a name means one thing for as long as the file
    says the same, and something else for a file of the same name in another folder.
    """
    place, _, name = kind.rpartition(":")
    if not place or not name:
        raise MethodError(f"{kind!r} names no {what}: say `my_file.py:Name` or `my_package:Name`")
    module = _from_file(place, folder) if file_of(kind) else _from_package(place)
    found = getattr(module, name, None)
    if not is_wanted(found):
        others = [n for n, value in vars(module).items() if is_wanted(value)]
        near = get_close_matches(name, others, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise MethodError(f"{place} has no {what} {name}{hint}")
    note(found)
    return found


def entry_point(point: EntryPoint) -> Any:
    """What an installed package brings; MethodError where that cannot be imported."""
    try:
        found = point.load()
    except (Exception, SystemExit) as error:
        raise MethodError(f"entry point {point.name!r} of {point.group}: {_said(error)}") from error
    note(found)
    return found


def note(code: Any) -> None:
    """Remember where a class or function that is not ours stands, and what it is derived from."""
    for one in getattr(code, "__mro__", (code,)):
        home = getattr(one, "__module__", None) or "builtins"
        if home.partition(".")[0] in {"sim", "learning", *sys.stdlib_module_names}:
            continue
        _homes.add(home)
        for function in (one, *vars(one).values()) if isinstance(one, type) else (one,):
            if inspect.isfunction(function):
                _sources.add(function.__code__.co_filename)


@contextmanager
def in_own_code() -> Iterator[None]:
    """What code of the user's raises in here is OwnCodeError, which names its line; errors that we
    have worded, and those of the machine, stay what they are.
    """
    try:
        yield
    except (OSError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        place = None if is_ours(error) else _own_line(error)
        if place is None:
            raise
        raise OwnCodeError(f"{place}: {_said(error)}") from error


def generator_of(verb: str, given: Any) -> Any:
    """What a method's verb gave, if it is a generator; MethodError for one without a `yield`."""
    if isinstance(given, Generator):
        return given
    raise MethodError(f"`{verb}` gives {given!r:.40}, and no generator: let it `yield from` a verb")


def refuse_no_event(process: Any, error: RuntimeError) -> None:
    """Raise MethodError, with the line, where a process of SimPy's has yielded what is no event."""
    wrong = str(error).partition("Invalid yield value ")[2]
    if not wrong or process is None:
        return
    generator = process._generator
    while isinstance(inner := generator.gi_yieldfrom, Generator):
        generator = inner
    at = f"{generator.gi_code.co_filename}, line {generator.gi_frame.f_lineno}"
    what = f"{wrong:.60} is yielded, and no event: say `yield from` before a verb"
    raise MethodError(f"{at}: {what}") from error


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


class _Unkept(SourceFileLoader):
    """Reads a file's text each time, and writes no `__pycache__` beside the scenario."""

    def path_stats(self, path: Any) -> Any:
        raise OSError("no compiled code is kept")


def _from_file(place: str, folder: Path) -> ModuleType:
    try:
        path = located(place, folder)
        if not os.path.isfile(path):  # False for a name that is too long, too
            raise MethodError(
                f"there is no file {path if str(path).isprintable() else repr(str(path))}"
            )
        text = read_bytes(path)
    except FileProblem as error:
        raise MethodError(str(error)) from None
    mark = hashlib.blake2b(str(path.resolve()).encode() + b"\0" + text, digest_size=6)
    name = f"{_MODULE}{path.stem}_{mark.hexdigest()}"
    if name in sys.modules:
        return sys.modules[name]
    _sources.add(str(path))
    spec = importlib.util.spec_from_file_location(name, path, loader=_Unkept(name, str(path)))
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # pydantic looks there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        line = error.lineno if isinstance(error, SyntaxError) else _line(error, {str(path)})
        at = "" if line is None else f", line {line}"
        raise MethodError(f"{path}{at}: {_said(error)}") from error
    return module


def _from_package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise MethodError(f"{name} cannot be imported: {_said(error)}") from error


def _said(error: BaseException) -> str:
    """An error's type and the first line of its words."""
    kind, words = type(error).__name__, first_line(error)
    return kind if words == kind else f"{kind}: {words}"


def _own_line(error: BaseException) -> str | None:
    """The innermost line of the user's that an error came through; None where it came through none.

    SimPy hands on a copy of what a process raised, with the original as its cause.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, AttributeError) and (kind := type(cause.obj)).__module__ in _homes:
            return f"{kind.__qualname__} lacks what its base class asks of it"
        frames = [f for f in traceback.extract_tb(cause.__traceback__) if f.filename in _sources]
        if frames:
            return f"{frames[-1].filename}, line {frames[-1].lineno}"
        cause = cause.__cause__ or cause.__context__
    return None


def _line(error: BaseException, sources: set[str]) -> int | None:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename in sources]
    return lines[-1] if lines else None
