"""Profiles in YAML files of a user's own: one file may extend another, and one word at its top says
that its numbers are his own.

    name: my-board
    extends: jetson-tx2        # a shipped profile, or a file: all of it, but what is said here
    basis: own                 # numbers without a source are mine
    memory_bytes: 16 GiB

In a profile a number is a mapping `{value, source, basis, ...}`; under `basis: own` it may stand
plain, or as text with a unit. What the keys mean is the business of whoever reads them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inputs.files import FileProblem, located, read_yaml, yaml_lines
from inputs.shipped import Shipped, is_file
from inputs.units import parse

MOST_PARENTS = 10
MOST_BYTES = 2**20  # of a profile
OWN = "own"
NO_NUMBER = "not a number"
_DIMENSIONS = {"_bytes": "B", "flop_per_s": "FLOP/s", "_bps": "bit/s", "_s": "s", "_w": "W"}


@dataclass(frozen=True)
class Layered:
    """What a profile's file says over those that it extends: `files`, its own first; `own` where
    one of them says `basis: own`.
    """

    data: Any
    files: list[Path]
    own: bool

    def refuse(
        self, problems: Sequence[tuple[tuple[str | int, ...], str]], error: type[ValueError]
    ) -> None:
        """Raise the error with a line for each problem, if there are any."""
        if problems:
            raise error("\n".join(located_problems(problems, self.files)))


@dataclass(frozen=True)
class _Layer:
    """What one file says, without its `extends` and `basis`; `own` where it says `basis: own`."""

    path: Path
    data: Any
    own: bool


def read_layered(
    path: Path,
    shipped: Shipped,
    numbers: Collection[str],
    error: type[ValueError],
    over: Callable[[Any, Any], Any] | None = None,
    not_inherited: Collection[str] = ("name",),
) -> Layered:
    """The file over those that it extends; plain numbers have become mappings.

    `shipped` are the profiles that have names, `numbers` the keys under which a number stands;
    `over` lays a child over its parent, which has lost the keys that are `not_inherited`. Raises
    `error` for what is wrong with `extends` and `basis`, FileProblem for a file that cannot be
    read.
    """
    problems: list[str] = []
    layers = _layers(path, shipped, numbers, problems)
    if problems:
        raise error("\n".join(problems))
    data = layers[-1].data
    for layer in reversed(layers[:-1]):
        if isinstance(data, Mapping):
            data = {key: value for key, value in data.items() if key not in not_inherited}
        data = (over or merged)(layer.data, data)
    return Layered(data, [layer.path for layer in layers], any(layer.own for layer in layers))


def _layers(
    path: Path, shipped: Shipped, numbers: Collection[str], problems: list[str]
) -> list[_Layer]:
    """The file and those that it extends, the nearest first."""
    layers: list[_Layer] = []
    while True:
        data, parent = read_yaml(path, MOST_BYTES), None
        own = isinstance(data, Mapping) and data.get("basis") == OWN
        if isinstance(data, Mapping):
            if not own and "basis" in data:
                what = f"found {data['basis']!r}, allowed: own, or a basis at each number"
                problems += located_problems([(("basis",), what)], [path])
            parent = data.get("extends")
            data = {key: value for key, value in data.items() if key not in ("extends", "basis")}
        layers.append(_Layer(path, _sourced(data, path, numbers) if own else data, own))
        if parent is None:
            return layers
        path, what = _parent(path, parent, shipped, [layer.path for layer in layers])
        if what:
            problems += located_problems([(("extends",), what)], [layers[-1].path])
            return layers


def _parent(here: Path, name: Any, shipped: Shipped, below: list[Path]) -> tuple[Path, str]:
    """The file that `extends` names, and what is wrong with that."""
    if not isinstance(name, str):
        return here, f"found {name!r}, allowed: a shipped profile's name, or a .yaml file"
    if not is_file(name) and name not in shipped:
        return here, f"no profile is called {name!r}; known: {', '.join(shipped)}"
    try:
        path = located(name, here.parent) if is_file(name) else shipped[name]
    except FileProblem as error:
        return here, str(error)
    if not os.path.isfile(path):
        return here, f"no file {name!r} in the folder of {here.name}"
    if path.resolve() in [one.resolve() for one in below]:
        return here, f"{name!r} leads back to this file"
    return path, f"more than {MOST_PARENTS} parents" if len(below) > MOST_PARENTS else ""


def _sourced(data: Any, path: Path, numbers: Collection[str]) -> Any:
    """The data with `{value, source, ...}` in the place of each plain number."""
    if not isinstance(data, Mapping) or "value" in data:
        return data
    return {
        key: {
            "value": value,
            "source": path.name,
            "date": OWN,
            "conditions": "as it says",
            "basis": OWN,
        }
        if key in numbers and not isinstance(value, Mapping)
        else _sourced(value, path, numbers)
        for key, value in data.items()
    }


def merged(child: Any, parent: Any) -> Any:
    """The child over the parent: mappings key by key, a number and all else whole."""
    if not (isinstance(child, Mapping) and isinstance(parent, Mapping)):
        return child
    if "value" in child or "value" in parent:
        return child
    both = {key: merged(child[key], parent[key]) if key in child else parent[key] for key in parent}
    return both | {key: value for key, value in child.items() if key not in parent}


def quantity(value: Any, key: str) -> float:
    """The number of a key that names its unit (`_bytes`, `_s`, ...), from a number or a text with a
    unit; ValueError where it is none.
    """
    if isinstance(value, bool):
        raise ValueError(NO_NUMBER)
    if isinstance(value, str):
        if key.endswith("bytes_per_s") and value.strip().endswith("B/s"):
            return parse(value, "bit/s") / 8
        dimension = next((_DIMENSIONS[s] for s in _DIMENSIONS if key.endswith(s)), None)
        if dimension is not None and not key.endswith("bytes_per_s"):
            return parse(value, dimension, signed=True)
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(NO_NUMBER) from None


def hint(error: ValueError) -> str:
    """What `quantity` has to say beyond that it is no number, in brackets."""
    return "" if str(error) == NO_NUMBER else f" ({error})"


def located_problems(
    found: Sequence[tuple[tuple[str | int, ...], str]], files: list[Path]
) -> list[str]:
    """Each as `file, line: dotted.key: what`, in the order of the files, which are of one profile,
    its own first; what no file says stands at the nearest key around it.
    """
    lines = [yaml_lines(file) for file in files]
    placed = []
    for where, what in found:
        number = where[:-1]  # that `where` is a part of, if it is of any: one file says all of it
        is_number = any((*number, "value") in known for known in lines) or where[-1:] == ("value",)
        owner = number if is_number else where
        at = next((i for i, known in enumerate(lines) if owner in known), 0)
        if is_number and not any(spot[:-1] == number for spot in lines[at]):  # it stands plain
            where = number
        around = [where[:length] for length in range(len(where), -1, -1)]
        line = next((lines[at][spot] for spot in around if spot in lines[at]), 1)
        placed.append((at, line, where, what))
    return [
        f"{files[at]}, line {line}: {_dotted(where) or 'the file'}: {what}"
        for at, line, where, what in sorted(placed, key=lambda one: one[:2])
    ]


def _dotted(where: tuple[str | int, ...]) -> str:
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in where)
    return text.lstrip(".")
