"""The kinds of spans, the ways they end, and what each of them means: whoever counts, draws or
tells spans looks it up here.

A device's kinds belong to a state of its power (`devices.power.STATES`; "off" draws nothing):
joules by state are sums over them. What did not end well was for nothing (`span_table.is_waste`):
its bytes were sent, its FLOP computed, its joules spent in vain.
"""

from __future__ import annotations

from dataclasses import dataclass

DEVICE, LINK = "device-", "link:"  # how the names of such actors begin; the third is "server"
STATES = ("compute", "uplink", "downlink", "idle", "off")
# the state of a kind of a method's own: a device that does something, and sends nothing, computes
OTHER = "compute"


@dataclass(frozen=True)
class Kind:
    """What an actor does meanwhile: a device's state, the colour in figures, and the word for
    devices at it, if counted.
    """

    state: str
    colour: str
    doing: str = ""


KINDS = {  # in the order of legends
    "wait": Kind("idle", "#D9D9D9", "waiting"),
    "charge": Kind("idle", "#F0E442"),
    "offline": Kind("off", "#595959"),
    "empty": Kind("off", "#663300"),  # switched off by its battery
    "download": Kind("downlink", "#56B4E9"),
    "upload": Kind("uplink", "#D55E00", "uploading"),
    "compute": Kind("compute", "#0072B2", "computing"),
    "load": Kind("compute", "#000000"),  # of a model that does not fit
    "train": Kind("compute", "#009E73"),  # from here on the server's
    "forward": Kind("compute", "#CC79A7"),
    "choose": Kind("compute", "#330099"),
    "gather": Kind("compute", "#00FF99"),
    "aggregate": Kind("compute", "#E69F00"),
    "carry": Kind("off", "#8C8C8C"),  # a link's: what it draws is nobody's
}
SERVER_WORK = ("train", "forward", "choose", "gather", "aggregate")


@dataclass(frozen=True)
class Outcome:
    """How a span or a device's run ended: `is_fine` if nothing went wrong, `is_lost` if what was
    done was for nothing.
    """

    words: str
    is_fine: bool = False
    is_lost: bool = True


OUTCOMES = {
    "ok": Outcome("as meant", is_fine=True, is_lost=False),
    "horizon": Outcome("the horizon came", is_fine=True),
    "target": Outcome("the target was reached", is_fine=True),
    "ended": Outcome("the training ended", is_fine=True),
    "interrupted": Outcome("the user stopped the run", is_fine=True),
    "stalled": Outcome("nothing could happen any more"),
    "low-battery": Outcome("paused, to go on where it was when charged", is_lost=False),
    "battery": Outcome("ran out of battery"),
    "offline": Outcome("went offline"),
    "late": Outcome("late"),
    "oom": Outcome("out of memory"),
    "gave-up": Outcome("gave up, cut short too often"),
    "unused": Outcome("answered, but too few did"),
    "diverged": Outcome("diverged"),
    "dropped": Outcome("dropped out"),
    "never-back": Outcome("gone for good"),
    "never-charged": Outcome("ran out of battery for good"),
    "never-ready": Outcome("never ready"),
}
FINE = frozenset(name for name, outcome in OUTCOMES.items() if outcome.is_fine)
NOT_LOST = frozenset(name for name, outcome in OUTCOMES.items() if not outcome.is_lost)


def in_words(outcome: str) -> str:
    """An outcome as a reader understands it; one of a method's own as it is."""
    return OUTCOMES[outcome].words if outcome in OUTCOMES else outcome


def colours_of(kinds: set[str]) -> dict[str, str]:
    """Kinds in the order of a legend with their colours; those of a method's own come first, in
    colours to spare.
    """
    own = sorted(kinds - set(KINDS))
    spare = ("#F5793A", "#A95AA1", "#85C0F9", "#0F2080")
    known = {name: kind.colour for name, kind in KINDS.items() if name in kinds}
    return {name: spare[number % len(spare)] for number, name in enumerate(own)} | known
