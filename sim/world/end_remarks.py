"""What whoever reads a result has to know of its rounds and updates: a sentence where something
came to nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from inputs.units import format_seconds
from sim.kernel.vocabulary import FINE, in_words

if TYPE_CHECKING:
    from sim.kernel.world import World

ENDINGS = {
    "horizon": "the horizon came first",
    "stalled": "whoever was left waited for what never came",
    "diverged": "the model diverged",
}
AT_WORK = {*FINE, "stalled"}  # as whoever had no trouble of its own


def end_remarks(world: World) -> Iterator[str]:
    """What whoever reads the result has to know about rounds and updates that came to nothing."""
    tally = world.tally
    if tally.diverged:
        first = "{device} diverged at update {update}: its {what} {verb} not finite".format_map(
            {**tally.diverged, "verb": "was" if tally.diverged["what"] == "loss" else "were"}
        )
        left = (
            f"; {tally.left_out} answers that were not finite are in no update"
            if tally.left_out
            else ""
        )
        yield (
            first
            + left
            + (
                f"; the run ended after {format_seconds(world.env.now)}"
                if world.ended.reason == "diverged"
                else ""
            )
        )
    if tally.without_answer:
        answered = tally.rounds - tally.without_answer
        others = "; of those asked in the others: " if answered else ": "
        yield (
            f"{answered} of {tally.rounds} rounds had an answer that "
            f"counted{others}{_listed(tally.missed.elements())}"
        )
    if (
        world.updates == 0
        and not tally.without_answer
        and not world.target_reached
        and world.ended.reason != "interrupted"
    ):
        yield ": ".join(filter(None, ("no update was made", "; ".join(_reasons(world)))))
    elif is_unlooked_at(world) and world.ended.reason != "interrupted":
        several = "updates" if world.updates > 1 else "update"
        yield (
            f"{world.updates} {several}, and no look at what came of it: the run ended before the "
            "first (`evaluate_every`)"
        )


def is_unlooked_at(world: World) -> bool:
    """Whether a model has been trained that nobody has looked at."""
    return world.updates > 0 and not (world.dry or world.tally.diverged or world.looked_after)


def _reasons(world: World) -> Iterator[str]:
    if world.ended.reason in ENDINGS:
        yield ENDINGS[world.ended.reason]
    if (joins_s := min(device.joined_at_s for device in world.devices)) > world.env.now:
        yield f"the first device joins after {format_seconds(joins_s)}"
    if troubled := [device.outcome for device in world.devices if device.outcome not in AT_WORK]:
        yield f"of {len(world.devices)} devices {_listed(troubled)}"
    if world.recorder.uplink_bytes and not world.tally.left_out:
        yield "what was uploaded is too little for one"


def _listed(words: Iterable[str]) -> str:
    return ", ".join(f"{count} {in_words(word)}" for word, count in sorted(Counter(words).items()))
