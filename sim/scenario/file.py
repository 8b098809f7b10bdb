"""Scenario files: YAML in, a validated pydantic model out, or one error that lists every mistake
with its place.

In order: the text becomes a tree of nodes that remember file, line and column; `extends` lays the
file over its parent; overrides set single values; the model judges the whole; its complaints go
back to the places they came from. What a scenario holds is the model's business alone. A scenario
is data: YAML tags are refused, and `extends` stays inside the scenario's folder.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel, ValidationError

from sim.scenario.complaints import MAX_SHOWN, explained, nearest
from sim.scenario.settings import FIRST_NAME, OTHER_NAME, RENAMED, unread
from sim.scenario.yaml_tree import MAX_DEPTH, Node, Place, Problem, dotted, read, shown

Model = TypeVar("Model", bound=BaseModel)

MAX_FILE_BYTES = 1_000_000
MAX_PARENTS = 10
SUFFIXES = ("", ".yaml", ".yml")


class ScenarioError(ValueError):
    """A scenario cannot be used; one line for each problem, as `file:line:column: dotted.path: what
    is wrong`.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


def load(
    source: str | os.PathLike[str] | Mapping[str, Any],
    model: type[Model],
    overrides: Iterable[str] = (),
    search: Iterable[str | os.PathLike[str]] = (),
    check: Callable[[Model], Iterable[tuple[tuple[str | int, ...], str]]] | None = None,
    before: Callable[[Any], Iterable[tuple[tuple[str | int, ...], str]]] | None = None,
) -> Model:
    """The scenario in the file, or the mapping that its YAML would give, as a model instance, its
    parents and then the overrides (`fleet.0.count=3`) applied.

    A name that is no file is tried with `.yaml` and `.yml` appended, then in the `search` folders.
    An override sets the value at its path, whole. `check` looks at the finished instance and yields
    (path, what is wrong) for what no single field can know, `before` for what the plain data need
    before they can be read at all. Raises ScenarioError with every problem
    found, and nothing else.
    """
    problems: list[Problem] = []
    try:
        root = _root(source, [Path(folder) for folder in search], problems)
    except Problem as problem:
        raise _error([*problems, problem]) from None
    for override in overrides:
        try:
            root = _override(root, override)
        except Problem as problem:
            problems.append(problem)
    early = [] if before is None else [*before(root.plain())]
    problems += [Problem(_place(root, where), f"{dotted(where)}: {what}") for where, what in early]
    if early:
        raise _error(problems)
    try:
        instance = model.model_validate(root.plain())
    except ValidationError as error:
        problems += explained(error, model, root)
    if not problems:
        found = [*unread(instance, root), *(check(instance) if check is not None else ())]
        problems += [
            Problem(_place(root, where), f"{dotted(where)}: {what}") for where, what in found
        ]
    if problems:
        raise _error(problems)
    return instance


def resolved(instance: BaseModel) -> dict[str, Any]:
    """The whole scenario, defaults included, as JSON-able data that the same model reads back to an
    equal instance.

    A set has no order that every process agrees on: a model whose digest should mean something
    holds lists instead.
    """
    return _dumped(instance)


def changed(instance: Model, key: str, value: Any) -> Model:
    """The same with another value at a dotted path such as `task.partition.alpha`; ScenarioError if
    that cannot be.

    What nobody has set stays unset, so that a default may follow from the new value.
    """
    data = _dumped(instance, exclude_unset=True)
    whole: Any = resolved(instance)
    settings: Any = instance
    spot: Any = data
    *path, last = dotted_path(key)
    try:
        for step in path:
            wrong = step
            settings, whole = _below(settings, whole, step)
            if isinstance(spot, dict) and spot.get(step) is None:
                spot[step] = whole
            spot = spot[step]
        if isinstance(last, str) and last not in whole:
            last = RENAMED.get(last, last)
        wrong = last
        _below(settings, whole, last)  # a new key would be a typing error
    except (KeyError, IndexError, TypeError):
        known = {*whole, *_fields(settings)} if isinstance(whole, dict) else ()
        raise ScenarioError([f"nothing is called {key!r}{nearest(wrong, known)}"]) from None
    spot[last] = value
    try:
        return type(instance).model_validate(data)
    except ValidationError as error:
        root = read(json.dumps(data), key, [])
        assert root is not None, "a scenario is not nothing"
        found = explained(error, type(instance), root)
        raise ScenarioError(problem.text for problem in found) from None


def _below(settings: Any, whole: Any, step: str | int) -> tuple[Any, Any]:
    """What is below a step: the settings, None where a section is off, and how they are dumped, {}
    for what a dump leaves out because it is as it is by default. KeyError for no setting.
    """
    if step in _fields(settings):
        found = whole.get(step)
        return getattr(settings, str(step)), {} if found is None else found
    if settings is None and whole == {}:
        return None, {}
    found, holds = whole[step], isinstance(settings, Mapping | list | tuple)
    return settings[step] if holds else None, found


def _fields(settings: Any) -> Collection[str]:
    return type(settings).model_fields if isinstance(settings, BaseModel) else ()


def dotted_path(key: str) -> list[str | int]:
    """The steps of a dotted path: names, and numbers of items."""
    return [int(step) if re.fullmatch("[0-9]{1,9}", step) else step for step in key.split(".")]


def plain(value: object) -> object:
    """What numpy's numbers and arrays hold, and what a path says, as JSON can hold it; TypeError
    for anything else.
    """
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return os.fspath(value)  # type: ignore[call-overload]


def digest(data: dict[str, Any]) -> str:
    """SHA-256 of the data's canonical JSON (sorted keys, no spaces) in hex; raises ValueError on
    NaN and infinity.

    A setting goes in by the first name that it had, so that a run under the old one is the same.
    """
    text = json.dumps(_by_first_names(data), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _dumped(instance: BaseModel, exclude_unset: bool = False) -> dict[str, Any]:
    """As JSON-able data. Settings of code of the user's may be of a class that its name means no
    more, of which pydantic would warn; they are dumped as what they are.
    """
    return instance.model_dump(
        mode="json", by_alias=True, exclude_unset=exclude_unset, warnings=False
    )


def _by_first_names(value: Any) -> Any:
    if isinstance(value, dict):
        return {FIRST_NAME.get(key, key): _by_first_names(inner) for key, inner in value.items()}
    return [_by_first_names(inner) for inner in value] if isinstance(value, list) else value


def _error(problems: list[Problem]) -> ScenarioError:
    lines = list(
        dict.fromkeys(
            f"{problem.place}: {problem.text}"
            for problem in sorted(problems, key=lambda p: p.place)
        )
    )
    return ScenarioError(
        [*lines[:MAX_SHOWN], "... and more problems"] if len(lines) > MAX_SHOWN else lines
    )


# ---- from a file to a tree of nodes


def _root(source: object, folders: list[Path], problems: list[Problem]) -> Node:
    """The tree of what a user named as a scenario; the paths of a mapping start in the working
    directory.
    """
    place = Place("scenario")
    if isinstance(source, str | os.PathLike):
        path = _find(Path(source), folders)
        return _with_parents(_read(path, problems), path, [], problems)
    if not isinstance(source, Mapping):
        raise Problem(
            place,
            "expected the path of a file, the name of a shipped scenario, or a dict as YAML would "
            f"give it (got {shown(source)})",
        )
    try:
        text = json.dumps(dict(source), allow_nan=False, ensure_ascii=False, default=plain)
    except (TypeError, ValueError) as error:
        raise Problem(place, f"the dict holds what YAML cannot ({error})") from None
    root = read(text, place.source, problems)
    assert root is not None, "a dict is not nothing"
    return _with_parents(_placed(root, place), Path(), [], problems)


def _find(path: Path, folders: list[Path]) -> Path:
    """The file itself, or the one of that name in the first search folder that has it."""
    place = _file_place(path)
    try:
        for folder in (Path(), *folders):
            for suffix in SUFFIXES:
                if (candidate := folder / f"{path}{suffix}").is_file():
                    return candidate
        if (path / "manifest.json").is_file():
            raise Problem(
                place,
                "the folder of a run; name its scenario file, with --out and this folder to go on "
                "with it (--resume)",
            )
        if path.exists():
            raise Problem(place, "not a file; name a scenario file")
        known = sorted(
            {
                file.stem
                for folder in folders
                for suffix in SUFFIXES[1:]
                for file in folder.glob(f"*{suffix}")
            }
        )
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise Problem(place, f"cannot be opened ({_reason(error)})") from None
    allowed = f" (known scenarios: {', '.join(known)})" if known else ""
    raise Problem(place, f"no such scenario file{allowed}{nearest(path.stem, known)}")


def _with_parents(root: Node, path: Path, children: list[Path], problems: list[Problem]) -> Node:
    """The file's tree laid over the file it extends, which is laid over its own parent, and so
    on.
    """
    parent = root.value.get("extends")
    if parent is None:
        return root
    here = [*children, path.resolve()]
    parent_path = _parent_path(path, parent)
    if parent_path.resolve() in here:
        raise Problem(parent.place, f"extends: {shown(parent.value)} leads back to this file")
    if len(here) > MAX_PARENTS:
        raise Problem(parent.place, f"extends: more than {MAX_PARENTS} parents")
    own = {key: child for key, child in root.value.items() if key != "extends"}
    above = _with_parents(_read(parent_path, problems), parent_path, here, problems)
    return _merged(above, replace(root, value=own))


def _parent_path(path: Path, parent: Node) -> Path:
    """The file that `extends` names, which must lie in the folder of the file that says so,
    symbolic links followed.
    """
    name, folder = parent.value, path.parent
    if not isinstance(name, str) or not name:
        raise Problem(parent.place, f"extends: expected the name of a file (got {shown(name)})")
    try:
        wanted = folder / name
        within = wanted.resolve().is_relative_to(folder.resolve())
        if Path(name).is_absolute() or ".." in Path(name).parts or not within:
            raise Problem(
                parent.place, f"extends: must stay inside the scenario's folder (got {shown(name)})"
            )
        if not wanted.is_file():
            others = sorted(file.name for file in folder.glob("*.y*ml") if file.name != path.name)
            raise Problem(
                parent.place,
                f"extends: no file {shown(name)} in the scenario's folder{nearest(name, others)}",
            )
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: a loop of symbolic links
        raise Problem(
            parent.place, f"extends: cannot open {shown(name)} ({_reason(error)})"
        ) from None
    return wanted


def _read(path: Path, problems: list[Problem]) -> Node:
    """The tree of one file, its root a mapping."""
    place = _file_place(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise Problem(place, f"cannot be opened ({_reason(error)})") from None
    if len(raw) > MAX_FILE_BYTES:
        raise Problem(place, f"larger than {MAX_FILE_BYTES} bytes, too large for a scenario")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise Problem(
            Place(place.source, line, 1), "not UTF-8 text; save the file as UTF-8"
        ) from None
    root = read(text, place.source, problems)
    if root is None or root.value is None:
        raise Problem(
            place, "the file is empty; a scenario is a mapping such as `name: quickstart`"
        )
    if not isinstance(root.value, dict):
        raise Problem(
            root.place, f"expected a mapping such as `name: quickstart` (got {shown(root.value)})"
        )
    return root


# ---- laying trees over each other


def _merged(parent: Node, child: Node) -> Node:
    """The child over the parent: mappings key by key, all else replaced.

    A mapping that names another `kind` than its parent's replaces it whole: the parent's keys
    belong to that kind.
    """
    if not (isinstance(parent.value, dict) and isinstance(child.value, dict)):
        return child
    kinds = [node.value["kind"].value for node in (parent, child) if "kind" in node.value]
    if len(kinds) == 2 and kinds[0] != kinds[1]:
        return child
    fields = {
        key: node for key, node in parent.value.items() if OTHER_NAME.get(key) not in child.value
    }
    for key, own in child.value.items():
        fields[key] = _merged(fields[key], own) if key in fields else own
    return replace(child, value=fields)


def _override(root: Node, override: str) -> Node:
    """The tree with the value of `a.b.0.c=value` put in; mappings on the way are made where they
    are missing.
    """
    place = Place(f"override {shown(override)}")
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys) or len(keys) > MAX_DEPTH:
        raise Problem(place, "expected key=value, such as fleet.0.count=3")
    problems: list[Problem] = []
    try:
        value = read(text, place.source, problems)
    except Problem as problem:
        problems.append(problem)
    if problems:
        raise Problem(place, f"{path}: {problems[0].text}")
    return _replaced(root, keys, [], _placed(value or Node(None, place), place), place)


def _replaced(node: Node, keys: list[str], above: list[str], new: Node, place: Place) -> Node:
    if not keys:
        return new
    key, *rest = keys
    if isinstance(node.value, list):
        if not re.fullmatch("[0-9]{1,9}", key) or int(key) >= len(node.value):
            count = len(node.value)
            allowed = f"a list of {count}" + (f", use 0 to {count - 1}" if count else "")
            raise Problem(
                place, f"{dotted([*above, key])}: no such item ({dotted(above)} is {allowed})"
            )
        items = list(node.value)
        items[int(key)] = _replaced(items[int(key)], rest, [*above, key], new, place)
        return replace(node, value=items)
    if node.value is not None and not isinstance(node.value, dict):
        raise Problem(
            place,
            f"{dotted([*above, key])}: {dotted(above)} holds {shown(node.value)}, not a mapping",
        )
    fields = dict(node.value or {})
    fields.pop(OTHER_NAME.get(key), None)
    child = fields.get(key, Node(None, place, key=place))
    fields[key] = replace(_replaced(child, rest, [*above, key], new, place), key=child.key)
    return replace(node, value=fields)


def _placed(node: Node, place: Place) -> Node:
    """The tree with one place for all of it: lines and columns inside an override help nobody."""
    value = node.value
    if isinstance(value, dict):
        value = {key: _placed(child, place) for key, child in value.items()}
    elif isinstance(value, list):
        value = [_placed(child, place) for child in value]
    return Node(value, place, key=place)


def _file_place(path: Path) -> Place:
    return Place(str(path) if str(path).isprintable() else repr(str(path)))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _place(root: Node, path: Iterable[str | int]) -> Place:
    """Where the value at a path stands, or the nearest one around it."""
    node = root
    for step in path:
        inside = node.value
        if isinstance(inside, dict) and str(step) in inside:
            node = inside[str(step)]
        elif isinstance(inside, list) and isinstance(step, int) and step < len(inside):
            node = inside[step]
        else:
            break
    return node.place
