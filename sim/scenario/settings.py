"""The base of everything a scenario file can set: frozen, nothing unknown allowed, documented field
by field.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PrivateAttr,
    model_validator,
)

from sim.scenario.yaml_tree import Node

Responses = Literal["never", "also", "only"]
"""Whether a method can learn what is said next: besides classes, or nothing else."""
OnlyFor = Mapping[str, tuple[str, Callable[[Any], bool]]]
"""Field -> what it is for, in words, and whether these settings are that."""


RENAMED = {
    "eager": "update_share_on_arrival",
    "deliver": "ship_side_network",
    "bits": "wire",
}
"""Old name of a setting -> its name now. The old ones are still taken, with a remark."""
REWORDED = {"bits": {32: "float32", 16: "float16", 8: "int8", 4: "int4"}}
"""Old name -> what its values are called now, where they are called otherwise, too."""
FIRST_NAME = {now: old for old, now in RENAMED.items() if old not in REWORDED}
"""By which digests know a setting."""
OTHER_NAME = RENAMED | {now: old for old, now in RENAMED.items()}


def as_seen(label: str) -> str:
    """What is seen of a label: no signs without a shape, and one space for any white space."""
    shown = (sign if sign.isprintable() else " " * sign.isspace() for sign in label)
    return " ".join(unicodedata.normalize("NFC", "".join(shown)).split())


def _one_line(label: str) -> str:
    if re.search(r"[\x00-\x1f\x7f-\x9f]", label):
        raise ValueError("a label is one line of text, without control characters")
    if label and not as_seen(label):
        raise ValueError("a label needs a sign that is seen")
    return label


Label = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_one_line)]
"""What a method is called in tables, figures and legends; its folders have a name made of it."""


class Settings(BaseModel):
    """A group of settings; a docstring below a field says what it means.

    `only_for` names the fields that nothing reads unless the other settings are of a kind: who sets
    one of them without that is told so. Dataclasses among the settings may have it too.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        defer_build=True,  # most are only ever read as a part of the scenario
    )
    only_for: ClassVar[OnlyFor] = {}
    responses: ClassVar[Responses] = "never"
    """Of a method's settings: whether it takes tasks of `kind: language-modelling`."""
    is_reference: ClassVar[bool] = False
    """Of a method's settings: whether others are held against it, as a line and no baseline."""


class RenamedSettings(Settings):
    """Settings some of which had other names once: what is said by an old name is taken for what it
    is called now, unless that is said, too.
    """

    _old_names: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="wrap")
    @classmethod
    def _by_old_names(cls, given: Any, make: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(given, Mapping):
            return make(given)
        now = {old: name for old in given if (name := name_now(cls, old)) not in given}
        made = make({now.get(key, key): _reworded(key, value) for key, value in given.items()})
        made._old_names = tuple(now)
        return made

    def renamed(self) -> Iterator[tuple[str, str]]:
        """What was said by an old name: (old, name now)."""
        for old in self._old_names:
            yield old, RENAMED[old]


def _reworded(name: str, value: Any) -> Any:
    words = REWORDED.get(name, {})
    return words.get(value, value) if type(value) is int else value


def name_now(settings: Any, name: str) -> str:
    """What a setting is called now, where `name` is an old name of it."""
    fields = getattr(settings, "model_fields", {})
    now = RENAMED.get(name, name)
    return now if now in fields and name not in fields else name


def unread(settings: Any, given: Node) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What was set and nothing will read, or as something else: (where, what is wrong), in the
    order of the file.

    A value that an own parent file sets is not meant: who lays a file over another cannot take its
    keys away.
    """
    yield from _unread(settings, given, (), {given.place.source})


def why_unread(settings: Any, name: str) -> str | None:
    """What a field is for where these settings are not that, so that nothing reads it; None where
    it is read.
    """
    now = name_now(type(settings), name)
    # those of the parents hold besides the class's own, which goes first
    every = [vars(base).get("only_for", {}) for base in type(settings).__mro__]
    conditions = [own[now] for own in every if now in own]
    return next((what for what, holds in conditions if not holds(settings)), None)


def _unread(
    settings: Any, given: Node, path: tuple[str | int, ...], own: set[str]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(given.value, list):
        children = list(enumerate(given.value)) if isinstance(settings, list | tuple) else []
    else:
        children = list(given.value.items()) if isinstance(given.value, dict) else []
    for name, child in children:
        is_own = child.place.source in own or child.place.line == 0  # an override has no line
        if (
            is_own
            and child.value is not None
            and isinstance(name, str)
            and (what := why_unread(settings, name))
        ):
            yield (
                (*path, name),
                f"is for {what} alone, so that nothing would read it here: leave it out",
            )
        inner = settings.get(name) if isinstance(settings, Mapping) else None
        if inner is None:
            inner = settings[name] if isinstance(name, int) else getattr(settings, name, None)
        if isinstance(child.value, bool) and type(inner) in (int, float):  # pydantic takes it for 1
            yield (*path, name), f"expected a number (got {str(child.value).lower()})"
        yield from _unread(inner, child, (*path, name), own)


def _named_as_spelled(given: Any) -> Any:
    """Classes 0 and 1 are called that, however YAML reads them."""
    if not isinstance(given, dict):
        return given
    return {str(k) if isinstance(k, int) else k: text for k, text in given.items()}


LabelTexts = Annotated[
    dict[str, Annotated[str, Field(max_length=10_000)]], BeforeValidator(_named_as_spelled)
]
"""Class name -> a sentence about it."""
