"""What a model says against a scenario's tree, in words of ours, at the places in the file that it
means.
"""

import functools
import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from sim.scenario.settings import OTHER_NAME, RENAMED
from sim.scenario.yaml_tree import Node, Problem, dotted, shown

MAX_SHOWN = 100  # problems

_EXPECTED = {
    **dict.fromkeys(
        ("model_type", "model_attributes_type", "dict_type", "dataclass_type"), "expected a mapping"
    ),
    **dict.fromkeys(("list_type", "tuple_type", "set_type", "frozen_set_type"), "expected a list"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "expected a whole number"),
    "int_parsing_size": "expected a smaller whole number",
    **dict.fromkeys(("float_type", "float_parsing"), "expected a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "expected true or false"),
    "string_type": "expected text",
    "string_pattern_mismatch": "expected letters, digits, `.`, `_` and `-`, "
    "beginning with a letter or digit",
    "missing": "required key is missing",
    "union_tag_not_found": "required key is missing",
    "extra_forbidden": "unknown key",
    "unexpected_keyword_argument": "unknown key",  # of a dataclass
    "literal_error": "not an allowed value",
    "enum": "not an allowed value",
    "union_tag_invalid": "not an allowed value",
}


class _Spot:
    """The end of a pydantic location: which node it means, under which path, and what the JSON
    schema says there.

    Pydantic's locations name the branches of unions too, which no file holds; the schema tells the
    one from the other.
    """

    def __init__(self, schema: dict[str, Any], root: Node, loc: tuple[str | int, ...]) -> None:
        self.definitions = schema.get("$defs", {})
        self.schema = self.settled(schema)
        self.owner: dict[str, Any] = {}
        self.node: Node | None = root
        self.place = root.place
        self.path: tuple[str | int, ...] = ()
        self.in_branch = False
        for step in loc:
            branches = self.schema.get("oneOf") or self.schema.get("anyOf")
            if branches:
                self.schema = self.branch(branches, str(step))
                self.in_branch = True
            elif step != "[key]":  # pydantic's word for the key itself, not its value
                self.enter(step)

    def settled(self, schema: Any) -> dict[str, Any]:
        """The schema behind references and behind `or nothing`."""
        found: dict[str, Any] = schema if isinstance(schema, dict) else {}
        while True:
            some = [branch for branch in found.get("anyOf", ()) if branch.get("type") != "null"]
            if "$ref" in found:
                found = self.definitions.get(found["$ref"].rsplit("/", 1)[-1], {})
            elif len(some) == 1:
                found = some[0]
            else:
                return found

    def branch(self, branches: list[dict[str, Any]], tag: str) -> dict[str, Any]:
        by_tag = self.schema.get("discriminator", {}).get("mapping", {})
        if tag in by_tag:
            return self.settled({"$ref": by_tag[tag]})
        kind = {"list": "array", "tuple": "array", "dict": "object"}.get(tag.partition("[")[0])
        for branch in branches:
            if branch.get("$ref", "").endswith(f"/{tag}") or (kind and branch.get("type") == kind):
                return self.settled(branch)
        return {}

    def enter(self, step: str | int) -> None:
        value = self.node.value if self.node else None
        if isinstance(value, list) and isinstance(step, int) and step < len(value):
            child = value[step]
        else:
            child = None
            if isinstance(value, dict):
                child = value.get(str(step)) or value.get(OTHER_NAME.get(str(step), ""))
        self.owner, prefix = self.schema, self.schema.get("prefixItems", ())
        if isinstance(step, int):
            inner = prefix[step] if step < len(prefix) else self.schema.get("items")
        else:
            # a mapping with names of the user's own: any name, or those of a pattern
            others = next(
                iter(self.schema.get("patternProperties", {}).values()),
                self.schema.get("additionalProperties"),
            )
            inner = self.schema.get("properties", {}).get(step, others)
        self.schema = self.settled(inner)
        self.node = child
        self.path = (*self.path, step)
        self.in_branch = False
        self.place = child.place if child else self.place


def explained(error: ValidationError, model: type[BaseModel], root: Node) -> list[Problem]:
    """The model's complaints as problems at their places, those about one value gathered in one."""
    schema = _schema_of(model)
    items = error.errors(include_url=False, include_input=False)[: 10 * MAX_SHOWN]
    spots = [(_Spot(schema, root, item["loc"]), item) for item in items]
    inner = {spot.path[:length] for spot, _ in spots for length in range(len(spot.path))}
    found: dict[tuple[Any, ...], tuple[_Spot, list[str], list[str]]] = {}
    for spot, item in spots:
        if spot.in_branch and spot.path in inner and item["type"] in _EXPECTED:
            continue  # the value is of another branch of the union, which has more to say
        what, allowed = _complaint(spot, item)
        _, whats, names = found.setdefault((spot.place, spot.path), (spot, [], []))
        whats += [what] if what not in whats else []
        names += [name for name in allowed if name not in names]
    return [Problem(spot.place, _text(spot, whats, names)) for spot, whats, names in found.values()]


def forget_schemas() -> None:
    """A model has changed: a method was registered."""
    _schema_of.cache_clear()


@functools.cache  # of many classes: it takes a tenth of a second, and only a mistake asks for it
def _schema_of(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def _complaint(spot: _Spot, item: Any) -> tuple[str, list[Any]]:
    """What is wrong in our words and the names that are allowed instead; moves the spot to the key
    that is meant.
    """
    kind, context = item["type"], item.get("ctx", {})
    if kind in ("value_error", "assertion_error"):
        return " ".join(str(context["error"]).split()) or "not valid", []
    message = (
        item["msg"]
        .replace("Input should be ", "must be ")
        .replace("greater than or equal to", "at least")
    )
    what = _EXPECTED.get(kind) or " ".join(
        message.replace("less than or equal to", "at most").split()
    )
    allowed: list[Any] = []
    if what == "unknown key":
        spot.place = spot.node.key if spot.node and spot.node.key else spot.place
        allowed = list(spot.owner.get("properties", ()))
        if (now := RENAMED.get(str(spot.path[-1]))) in allowed:
            return f"is the old name of {now}, which is given, too: leave one of them out", []
    elif kind in ("literal_error", "enum"):
        const = [spot.schema["const"]] if "const" in spot.schema else []
        allowed = spot.schema.get("enum") or const or re.findall("'([^']*)'", context["expected"])
    elif kind in ("union_tag_invalid", "union_tag_not_found"):
        allowed = list(spot.schema.get("discriminator", {}).get("mapping", ()))
        spot.enter(context["discriminator"].strip("'"))
    return what, allowed


def _text(spot: _Spot, whats: list[str], allowed: list[Any]) -> str:
    """`dotted.path: what is wrong (got ..., allowed ...); did you mean 'x'?`, each part where there
    is one.
    """
    unknown = whats == ["unknown key"]
    value = spot.node.value if spot.node else None
    parts = []
    telling = not isinstance(value, dict | list) or whats[0].startswith(
        ("expected", "not an allowed")
    )
    if spot.node and spot.path and not unknown and telling:
        parts.append(f"got {shown(value)}")
    if allowed:
        parts.append(f"allowed {', '.join(map(shown, allowed))}")
    what = " or ".join([whats[0], *(what.removeprefix("expected ") for what in whats[1:])])
    where = f"{dotted(spot.path)}: " if spot.path else ""
    hint = (
        nearest(spot.path[-1] if unknown else value, allowed)
        if unknown or value is not None
        else ""
    )
    return where + what + (f" ({', '.join(parts)})" if parts else "") + hint


def nearest(word: object, allowed: Iterable[object]) -> str:
    """`; did you mean 'x'?` for the allowed name that looks most like the word, or nothing if none
    does.
    """
    names = {str(name).casefold().replace("_", "-"): name for name in allowed}
    close = get_close_matches(str(word)[:100].casefold().replace("_", "-"), names, n=1)
    return f"; did you mean {shown(names[close[0]])}?" if close else ""
