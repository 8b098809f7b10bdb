"""How a method's vectors are sent (`learning.codecs`): how wide, at what cost for the device, and
what an upload holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from learning.backbones import catalogue
from learning.codecs.chain import chain_of
from learning.codecs.projection import AXIS_BYTES
from learning.cost.costs import Cost
from learning.side.activations import encoded_sizes, sizes_of
from learning.side.config import SideShape
from sim.kernel.world import World
from sim.methods.wires import sent_width


def wants_public_axes(config: Any) -> bool:
    """Whether public texts decide along which axes vectors are sent."""
    return chain_of(config.wire).projection == "pca"


def require_texts_for_axes(config: Any, world: World) -> None:
    """Raise ValueError where there are too few public texts for axes of theirs."""
    chain, public = chain_of(config.wire), len(world.task.public)
    if wants_public_axes(config) and public <= chain.coordinates:
        raise ValueError(
            f"method.wire: pca-{chain.coordinates} needs more than {chain.coordinates} public "
            f"texts at the server: say `task.public: {4 * chain.coordinates}`, or random-"
            f"{chain.coordinates}, which needs none"
        )


def require_ratings_of_half(config: Any, world: World, or_else: str = "") -> None:
    """Raise ValueError for ratings that half precision cannot hold, for a method that sends them
    so.
    """
    task, most = world.task, float(np.finfo(np.float16).max)
    largest = np.abs(task.labels[np.concatenate(task.parts)]).max() if task.has_ratings else 0
    if largest > most:
        raise ValueError(
            f"{config.kind} sends ratings in half precision, which ends at {most:,.0f}, and they "
            f"go up to {largest:,.6g}: scale them to a few units{or_else}"
        )


def note_uncoded(config: Any, world: World) -> None:
    """Say what a dry run cannot know of entropy coding."""
    if world.dry and (coder := chain_of(config.wire).coder):
        world.remark(
            f"method.wire: how much {coder} shortens depends on the numbers, and a dry run has "
            "none: uploads are charged as before it"
        )


def sent_widths(config: Any, widths: Mapping[str, int]) -> dict[str, int]:
    """How many numbers of a vector of each backbone there are as it is sent. ValueError for a wire
    that such vectors have not.
    """
    chain = chain_of(config.wire)
    return {name: sent_width(chain, width) for name, width in widths.items()}


def require_learned_widths(config: Any, world: World) -> None:
    """Raise ValueError where the models that learn have too narrow vectors for the wire, whatever
    is charged, so that a dry run says it, too.
    """
    for name, spec in world.costing.learned.items():
        try:
            sent_widths(config, {name: catalogue.width_of(catalogue.config_of(spec))})
        except ValueError as error:
            raise ValueError(f"{error} ({name}, which learns)") from error


def sending_cost(config: Any, vectors: int, width: int, records: int) -> Cost:
    """What a device computes to send so many records, of so many vectors of the backbone's width
    each; its peak are the axes, which it holds all the time.
    """
    chain = chain_of(config.wire)
    axes = width * chain.coordinates * (vectors if chain.projection == "pca" else 1)
    a_vector = chain.projecting_flop(width) + chain.encoding_flop(width)
    return Cost(records * vectors * a_vector, 4.0 * axes, 4 * axes)


def projection_cost(config: Any, vectors: int, width: int, texts: int) -> Cost:
    """What the principal axes of so many public texts' vectors cost the server: covariances, and
    all eigenvectors in 9 D^3 (Golub & Van Loan, section 8.3).
    """
    if not wants_public_axes(config):
        return Cost()
    flop = vectors * (2.0 * texts * width**2 + 9.0 * width**3)
    return Cost(flop, 8.0 * vectors * texts * width)


def projection_bytes(config: Any, vectors: int, width: int) -> int:
    """What a device is sent of them."""
    if not wants_public_axes(config):
        return 0
    return AXIS_BYTES * vectors * width * chain_of(config.wire).coordinates


def upload_sizes(config: Any, shape: SideShape, backbone: str, records: int, targets: int) -> dict:
    """The bytes of each part of an upload of so many records, by the shapes alone: before any
    entropy coding.
    """
    of_all = (records, shape.vectors, shape.backbone_widths[backbone], targets)
    return encoded_sizes(config.wire, *of_all)


def coded_sizes(sizes: Mapping[str, int], config: Any, data: bytes, learned: tuple) -> dict:
    """The same after entropy coding, which shortened the activations of the payload by so much;
    `learned` are records, vectors, their width and targets of that.
    """
    before, now = encoded_sizes(config.wire, *learned), sizes_of(data)
    values = round(sizes["values"] * now["values"] / before["values"])
    return {**sizes, "values": values, "frame": now["frame"]}
