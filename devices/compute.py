"""How long a piece of work takes on a device.

    seconds = overhead + FLOP / achieved rate + bytes / achieved memory bandwidth

The additive form of the roofline model (Williams et al., CACM 2009): it charges as if arithmetic
and memory traffic never overlapped, so without the overhead it lies between the roofline (the
larger of the two) and twice the roofline. All three coefficients come from a device profile.

These are the seconds of a cool device that has nothing else to do; `devices/thermal.py` and
`devices/load.py` stretch them.
"""

import functools
import math
from typing import Protocol

from devices.hardware import DeviceProfile, Engine


def seconds(
    profile: DeviceProfile, engine: str, flop: float, bytes_moved: float = 0.0, passes: int = 1
) -> float:
    """Modelled seconds of one piece of work, without jitter; each of its `passes` takes the
    engine's fixed time.

    `bytes_moved` is the traffic that the engine's rate does not already carry: the weights read
    once per pass. Activations that operators hand to each other are inside the measured rate.
    Raises `ValueError` for an unknown engine or an amount that is negative or not finite.
    """
    return _seconds(profile, profile.engine(engine), flop, bytes_moved, passes)


def _seconds(
    profile: DeviceProfile, path: Engine, flop: float, bytes_moved: float, passes: int
) -> float:
    if not (0 <= flop < math.inf and 0 <= bytes_moved < math.inf):
        raise ValueError(
            f"work must be finite and not negative: flop={flop}, bytes_moved={bytes_moved}"
        )
    return (
        passes * path.overhead_s
        + flop / path.flop_per_s
        + bytes_moved / profile.memory_bandwidth_bytes_per_s
    )


class NormalDraws(Protocol):
    """Where jitter comes from: a generator of NumPy's, or what draws as one."""

    def standard_normal(self) -> float:
        """One draw of mean 0 and deviation 1."""


def jitter_factor(cv: float, rng: NormalDraws) -> float:
    """One draw of a log-normal factor with mean 1 and coefficient of variation `cv`.

    sigma^2 = ln(1 + cv^2), mu = -sigma^2 / 2; one draw of `rng` whatever `cv` is.
    """
    sigma = _sigma(cv)
    return math.exp(sigma * rng.standard_normal() - sigma * sigma / 2)


@functools.lru_cache
def _sigma(cv: float) -> float:
    return math.sqrt(math.log1p(cv * cv))


class ComputeModel:
    """Seconds of each piece of work of one device: the formula above times a fresh jitter factor
    per piece.

    Without `rng`, or with `jitter=False`, the same work always takes the same time. Raises
    `ValueError` at once for an engine that the profile does not have.
    """

    __slots__ = ("_rng", "engine", "profile")

    def __init__(
        self,
        profile: DeviceProfile,
        engine_name: str,
        rng: NormalDraws | None = None,
        jitter: bool = True,
    ):
        self.profile = profile
        self.engine = profile.engine(engine_name)
        self._rng = rng if jitter else None

    def seconds(self, flop: float, bytes_moved: float = 0.0, passes: int = 1) -> float:
        """Seconds that this piece of work takes; the next call with the same work draws a new
        jitter.
        """
        nominal_s = _seconds(self.profile, self.engine, flop, bytes_moved, passes)
        return (
            nominal_s
            if self._rng is None
            else nominal_s * jitter_factor(self.profile.jitter_cv, self._rng)
        )
