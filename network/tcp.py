"""What TCP makes of a link, for flows that have no packets: lost bytes, a window's bound, the slow
start.

Each is a closed form of round trip, loss and windows, and each is for one transfer alone on its
way:

    loss         of n bytes sent a share p is lost and sent again, so n bytes need n / (1 - p) on
                 the air
    rate         <= window / RTT, and <= MSS / RTT * sqrt(3 / 2) / sqrt(p): a loss halves the window
                 (Mathis, Semke, Mahdavi & Ott, "The macroscopic behavior of the TCP congestion
                 avoidance algorithm",
                 ACM Computer Communication Review 27(3), 1997)
    slow start   the first window is w bytes and doubles every round trip; until a window fills the
                 pipe the sender
                 stops and waits for its first acknowledgement
                 (Kurose & Ross, "Computer Networking", 2nd ed., 2003, section 3.7, with bytes in
                 place of segments)
"""

from __future__ import annotations

from math import ceil, inf, log2, sqrt

from network.profile import LinkProfile

MSS_BYTES = 1448  # of a 1,500 byte packet, less 20 of IP and 32 of TCP with time stamps


def mathis_bps(rtt_s: float, loss: float, mss_bytes: float = MSS_BYTES) -> float:
    """The rate at which losses of share `loss` hold one flow of TCP Reno, bit/s; inf without loss
    or round trip.
    """
    return 8 * mss_bytes / rtt_s * sqrt(1.5 / loss) if loss and rtt_s else inf


def window_bps(rtt_s: float, window_bytes: float) -> float:
    """One window a round trip, bit/s; inf without a round trip."""
    return 8 * window_bytes / rtt_s if rtt_s else inf


def bound_bps(profile: LinkProfile) -> float:
    """The most that one transfer reaches on this link, whatever its rate: the lower of the two
    bounds, bit/s.
    """
    rtt_s = profile.rtt_s
    return min(mathis_bps(rtt_s, profile.loss), window_bps(rtt_s, profile.window_bytes))


def on_air_bytes(nbytes: float, loss: float) -> float:
    """Bytes that have to be sent, in the mean, for `nbytes` to arrive."""
    return nbytes / (1 - loss) if loss else nbytes


def slow_start_s(
    nbytes: float, rate_bps: float, rtt_s: float, initial_window_bytes: float
) -> float:
    """Seconds that a transfer of `nbytes`, alone at `rate_bps`, waits for acknowledgements in its
    slow start.

    After the k-th window the sender waits rtt - w 2^(k-1) / rate, as long as that is above zero and
    bytes are left. With P such waits the sum is P rtt - (2^P - 1) w / rate.
    """
    if not nbytes > initial_window_bytes or not rtt_s or not 0 < rate_bps < inf:
        return 0.0
    window_s = 8 * initial_window_bytes / rate_bps
    below_the_pipe = ceil(log2(rtt_s / window_s)) if rtt_s > window_s else 0
    before_the_last = ceil(log2(nbytes / initial_window_bytes + 1)) - 1
    waits = min(below_the_pipe, before_the_last)
    return max(0.0, waits * rtt_s - (2.0**waits - 1) * window_s)
