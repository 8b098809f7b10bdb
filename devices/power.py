"""Joules: the integral of a device's power over what it was doing.

A device is idle all the time and adds, for as long as it computes, sends or receives, what that
state draws above idle:

    P(t) = idle + sum over active states of (P_state - idle)

So alone, a state draws exactly its own power, and overlapping compute and radio add up, as they are
separate parts of the device. A radio's power grows with its rate, P = a + b x rate, where a profile
has the two numbers: then the joules of a transfer are a x seconds + b x Mbit, whatever the rate did
meanwhile.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

from devices.hardware import Power

STATES = ("compute", "uplink", "downlink", "idle")


def watts(power: Power, state: str) -> float:
    """Power of the whole device in one state, in watts; raises `ValueError` for a state that is not
    in `STATES`.
    """
    if state not in STATES:
        raise ValueError(f"no power state {state!r}; known: {', '.join(STATES)}")
    drawn_w: float = getattr(power, f"{state}_w")
    return drawn_w


def joules(power: Power, state: str, duration_s: float) -> float:
    """Joules that the device draws in `duration_s` seconds of one state alone."""
    if duration_s < 0:
        raise ValueError(f"a duration cannot be negative: {duration_s} s")
    return watts(power, state) * duration_s


def radio(power: Power, way: str, by_rate: bool = True) -> tuple[float, float]:
    """Watts of the whole device while it sends (`uplink`) or receives (`downlink`), and joules for
    each byte beside them.

    By rate where the profile says how (`<way>_base_w` and `<way>_w_per_mbps`), else the constant
    `<way>_w` and nothing.
    """
    if not by_rate:
        return watts(power, way), 0.0
    base_w = getattr(power, f"{way}_base_w")
    w_per_mbps = getattr(power, f"{way}_w_per_mbps")
    if base_w is None or w_per_mbps is None:
        return watts(power, way), 0.0
    return base_w, w_per_mbps * 8e-6


def transfer_joules(
    power: Power, way: str, duration_s: float, nbytes: float, by_rate: bool = True
) -> float:
    """Joules of the whole device while it sends or receives so many bytes in so many seconds."""
    watts_, j_per_byte = radio(power, way, by_rate)
    return watts_ * duration_s + j_per_byte * nbytes


def fit_radio(rate_mbps: Sequence[float], power_w: Sequence[float]) -> tuple[float, float]:
    """Least-squares line through measured (rate, power): watts at no rate, watts per Mbit/s."""
    slope, base = np.polyfit(
        np.asarray(rate_mbps, dtype=float), np.asarray(power_w, dtype=float), 1
    )
    return float(base), float(slope)


def power_at_w(power: Power, spans: Iterable[tuple[str, float, float]], time_s: float) -> float:
    """Power at one moment, for spans (state, start_s, end_s); a span is active from its start until
    just before its end.
    """
    active = (
        watts(power, state) - power.idle_w
        for state, start_s, end_s in spans
        if start_s <= time_s < end_s
    )
    return power.idle_w + math.fsum(active)


def energy_j(
    power: Power, spans: Iterable[tuple[str, float, float]], start_s: float, end_s: float
) -> float:
    """Integral of `power_at_w` from `start_s` to `end_s`; spans (state, start_s, end_s) are cut at
    the window.

    Closed form, since power is piecewise constant: idle x window + sum of (P_state - idle) x
    overlap with the window. Raises `ValueError` for a window or span that ends before it starts.
    """
    if end_s < start_s:
        raise ValueError(f"the window ends at {end_s} s before it starts at {start_s} s")
    total_j = power.idle_w * (end_s - start_s)
    for state, span_start_s, span_end_s in spans:
        if span_end_s < span_start_s:
            raise ValueError(
                f"a {state} span ends at {span_end_s} s before it starts at {span_start_s} s"
            )
        overlap_s = max(0.0, min(span_end_s, end_s) - max(span_start_s, start_s))
        total_j += (watts(power, state) - power.idle_w) * overlap_s
    return total_j
