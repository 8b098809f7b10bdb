"""From groups to members: who is in the fleet. Names only; nothing is loaded here."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

Choice = str | Mapping[str, float]
"""One value for all, or a mapping value -> weight to draw from (weights need not sum to 1)."""

Name = TypeVar("Name", bound=str | None)
NO_DRAWS = np.zeros(5)


@dataclass(frozen=True)
class Group:
    """`count` devices that are alike, or drawn from the same mixes.

    A link or cell that is not given is `None`. `memory_bytes` overrides the profile's RAM. Draws of
    different fields are independent: devices that go with certain backbones belong in groups of
    their own.
    """

    count: int
    device: Choice
    backbone: Choice
    link: Choice | None = None
    cell: Choice | None = None
    engine: Choice = "simple"
    memory_bytes: int | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """One device of the fleet; every field but `memory_bytes` is a name to be looked up by
    others.
    """

    id: str
    device: str
    engine: str
    backbone: str
    link: str | None
    cell: str | None
    memory_bytes: int | None
    group: str


def draw(groups: Sequence[Group], rng_of: Callable[[str], np.random.Generator]) -> list[Member]:
    """The members of all groups, in order, with ids `device-0000`, `device-0001`, ...

    `rng_of(member_id)` gives each member a stream of its own. From it come five uniforms if any
    field is a mix, one per field in a fixed order, needed or not: so a device added at the end
    leaves all others alone, and turning one field into a mix leaves the other fields alone.
    (Growing an earlier group renumbers the later groups.) Raises `ValueError` for a negative count
    or a mix without positive weights.
    """
    members: list[Member] = []
    for index, group in enumerate(groups):
        name = group.name or f"group-{index}"
        if group.count < 0:
            raise ValueError(f"{name}: count is {group.count}, allowed: 0 or more")
        choices = (group.device, group.engine, group.backbone, group.link, group.cell)
        is_mixed = any(isinstance(choice, Mapping) for choice in choices)
        for _ in range(group.count):
            member_id = f"device-{len(members):04d}"
            u = rng_of(member_id).random(5) if is_mixed else NO_DRAWS
            members.append(
                Member(
                    id=member_id,
                    device=_pick(group.device, u[0], f"{name}.device"),
                    engine=_pick(group.engine, u[1], f"{name}.engine"),
                    backbone=_pick(group.backbone, u[2], f"{name}.backbone"),
                    link=_pick(group.link, u[3], f"{name}.link"),
                    cell=_pick(group.cell, u[4], f"{name}.cell"),
                    memory_bytes=group.memory_bytes,
                    group=name,
                )
            )
    return members


def _pick(choice: Name | Mapping[str, float], u: float, where: str) -> Name | str:
    """Inverse of the cumulative weights at the uniform `u`, in the order in which the mix is
    written.
    """
    if not isinstance(choice, Mapping):
        return choice
    weights = list(choice.values())
    if (
        not weights
        or any(not math.isfinite(w) or w < 0 for w in weights)
        or math.fsum(weights) <= 0
    ):
        raise ValueError(
            f"{where}: a mix needs weights of at least 0, one above 0, found {dict(choice)}"
        )
    edges = np.cumsum(weights) / math.fsum(weights)
    # Rounding can leave the last edge just below u; a value of weight 0 is never the answer.
    likely = [i for i, w in enumerate(weights) if w > 0]
    index = min(int(np.searchsorted(edges, u, side="right")), likely[-1])
    return list(choice)[index]
