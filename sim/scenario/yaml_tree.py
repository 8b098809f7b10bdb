"""YAML text as a tree of nodes that remember their place, built without constructing anything but
data.

Numbers, booleans and nothing follow YAML 1.2's core schema, as editors expect: `1e-3` is a number,
`no` and `on` are text. Tags, merge keys and repeated keys are refused; depth and aliases are
bounded, so no text can exhaust memory.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import yaml

MAX_DEPTH = 50  # of nested lists and mappings
MAX_DIGITS = 400  # of a number, below the length at which Python refuses to print it
# characters and nodes that aliases may add: a few lines of YAML can stand for terabytes
MAX_ALIASED = 1_000_000


class Place(NamedTuple):
    """Where something was written: a position in a file (counted from 1), or an override as a whole
    (line 0).
    """

    source: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}" if self.line else self.source


@dataclass(frozen=True)
class Node:
    """A value of the file and its place; `value` is a scalar, a list of nodes, or a dictionary from
    text to nodes.
    """

    value: Any
    place: Place
    key: Place | None = None  # of the mapping key it stands under
    size: int = 1  # characters and nodes, aliases written out
    height: int = 0  # levels of lists and mappings from here down

    @classmethod
    def of(cls, value: Any, place: Place) -> "Node":
        """What `plain` would give back, with one place for all of it."""
        if isinstance(value, dict):
            return cls({str(key): cls.of(child, place) for key, child in value.items()}, place)
        if isinstance(value, list):
            return cls([cls.of(child, place) for child in value], place)
        return cls(value, place)

    def plain(self) -> Any:
        """The value alone: the dictionaries, lists and scalars that a model validates."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


class Problem(Exception):
    """What is wrong at one place; raised where the rest cannot be read, else collected."""

    def __init__(self, place: Place, text: str) -> None:
        super().__init__(text)
        self.place, self.text = place, text


def read(text: str, source: str, problems: list[Problem]) -> Node | None:
    """The tree of the only document in the text, or None where there is none.

    Problems that leave the rest readable (a repeated key, a tag) are appended to `problems`; others
    raise Problem.
    """
    return _Reader(text, source, problems).document()


class _Reader:
    """Builds nodes from the parser's events, so that depth, aliases and repeated keys are judged as
    they come by.
    """

    def __init__(self, text: str, source: str, problems: list[Problem]) -> None:
        self.text, self.source, self.problems = text, source, problems
        self.anchors: dict[str, Node] = {}
        self.aliased = 0

    def document(self) -> Node | None:
        try:
            loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
            self.events = yaml.parse(self.text, Loader=loader)
            next(self.events)  # the start of the stream
            if isinstance(next(self.events), yaml.StreamEndEvent):
                return None
            root = self.node(next(self.events), ())
            next(self.events)  # the end of the document
            if not isinstance(event := next(self.events), yaml.StreamEndEvent):
                raise Problem(
                    self.place(event), "a second document begins here; a scenario file holds one"
                )
        except yaml.MarkedYAMLError as error:
            place = (
                self.place(error)
                if error.problem_mark or error.context_mark
                else Place(self.source)
            )
            detail = ", ".join(part for part in (error.context, error.problem) if part)
            raise Problem(place, f"not valid YAML: {detail}") from None
        except yaml.reader.ReaderError as error:
            line = self.text.encode()[: error.position].count(b"\n") + 1
            raise Problem(Place(self.source, line, 1), f"not valid YAML: {error.reason}") from None
        except UnicodeEncodeError:  # a lone surrogate, which only a command line can hold
            raise Problem(Place(self.source), "not valid text") from None
        return root

    def place(self, event: Any) -> Place:
        mark = (
            getattr(event, "start_mark", None)
            or getattr(event, "problem_mark", None)
            or event.context_mark
        )
        return Place(self.source, mark.line + 1, mark.column + 1)

    def complain(self, place: Place, path: tuple[object, ...], text: str) -> None:
        self.problems.append(Problem(place, f"{dotted(path)}: {text}" if path else text))

    def node(self, event: Any, path: tuple[object, ...]) -> Node:
        """The node that begins with this event."""
        place = self.place(event)
        if isinstance(event, yaml.AliasEvent):
            node = self.alias(str(event.anchor), place)
        elif isinstance(event, yaml.ScalarEvent):
            node = Node(self.scalar(event, place, path), place, size=1 + len(event.value))
        elif len(path) >= MAX_DEPTH:
            raise Problem(place, f"nested more than {MAX_DEPTH} levels deep")
        else:
            node = self.collection(event, place, path)
        if len(path) + node.height > MAX_DEPTH:
            raise Problem(place, f"nested more than {MAX_DEPTH} levels deep")
        if getattr(event, "tag", None) is not None:
            self.complain(place, path, f"YAML tags are not allowed (got {shown(event.tag)})")
        if event.anchor:
            self.anchors[event.anchor] = node  # only now: an alias to what contains it has no end
        return node

    def collection(self, event: Any, place: Place, path: tuple[object, ...]) -> Node:
        value: list[Node] | dict[str, Node]
        if isinstance(event, yaml.SequenceStartEvent):
            children = value = [
                self.node(item, (*path, index))
                for index, item in enumerate(self.until(yaml.SequenceEndEvent))
            ]
            keys_size = 0
        else:
            value = self.mapping(path)
            children, keys_size = list(value.values()), sum(map(len, value))
        size = 1 + keys_size + sum(child.size for child in children)
        return Node(
            value, place, size=size, height=1 + max((child.height for child in children), default=0)
        )

    def until(self, end: type) -> Iterator[Any]:
        while not isinstance(event := next(self.events), end):
            yield event

    def alias(self, anchor: str, place: Place) -> Node:
        if anchor not in self.anchors:
            raise Problem(place, f"alias *{anchor} has no anchor &{anchor} before it")
        self.aliased += self.anchors[anchor].size
        if self.aliased > MAX_ALIASED:
            raise Problem(place, "the aliases of this file add up to more than a scenario can hold")
        return self.anchors[anchor]

    def mapping(self, path: tuple[object, ...]) -> dict[str, Node]:
        fields: dict[str, Node] = {}
        for event in self.until(yaml.MappingEndEvent):
            place, key = self.place(event), self.node(event, (*path, "key"))
            name = event.value if isinstance(event, yaml.ScalarEvent) else key.value
            inner = (*path, name if isinstance(name, str) else "?")
            child = replace(self.node(next(self.events), inner), key=place)
            if not isinstance(name, str):
                self.complain(place, path, f"a key must be text (got {shown(name)})")
            elif name == "<<":
                self.complain(
                    place,
                    path,
                    "merge keys (<<) are not part of YAML 1.2; repeat the keys or use `extends`",
                )
            elif name in fields:
                first = fields[name].key or fields[name].place
                self.complain(place, inner, f"key given twice (first in line {first.line})")
            else:
                fields[name] = child
        return fields

    def scalar(self, event: yaml.ScalarEvent, place: Place, path: tuple[object, ...]) -> object:
        """The scalar under YAML 1.2's core schema: `1e-3` is a number; `no`, `on` and `2026-01-02`
        are text.
        """
        text = event.value
        if not event.implicit[0] or event.tag is not None:
            return text
        if text in ("", "~", "null", "Null", "NULL"):
            return None
        if text in ("true", "True", "TRUE", "false", "False", "FALSE"):
            return text[0] in "tT"
        for pattern, number in _NUMBERS:
            if pattern.fullmatch(text):
                if len(text) <= MAX_DIGITS:
                    return number(text)
                self.complain(place, path, f"a number of {len(text)} digits is too long")
        return text


_NUMBERS = (
    (re.compile(r"[-+]?[0-9]+"), int),
    (re.compile(r"0o[0-7]+"), lambda text: int(text, 8)),
    (re.compile(r"0x[0-9a-fA-F]+"), lambda text: int(text, 16)),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), float),
    (
        re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"),
        lambda text: float(text.replace(".", "")),
    ),
)


def shown(value: object) -> str:
    """A value as an error shows it: short, and on one line whatever it holds."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-10:]}"


def dotted(keys: Iterable[object]) -> str:
    """The dotted path, with keys that would break the line or the path quoted."""
    return ".".join(
        text if re.fullmatch(r"[\w -]{1,80}", text := str(key)) else shown(text) for key in keys
    )
