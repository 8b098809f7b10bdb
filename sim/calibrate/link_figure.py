"""How well a fitted trace resembles the measured one: the two series, their distributions, their
autocorrelations.
"""

from pathlib import Path

import numpy as np

from network.bandwidth import CapacityTrace
from network.calibration import RateMoments, Variation, autocorrelation

SIZE_IN = (7.0, 4.2)
LONG_S = 14_400  # of drawing, for curves of the fit and not of one draw
SHARES = np.linspace(0, 1, 201)


def draw(
    series_bps: np.ndarray,
    trace: CapacityTrace,
    variation: Variation,
    measured: RateMoments,
    title: str,
    path: Path,
) -> None:
    """Write a figure of a series in steps of 1 s (bit/s, NaN where missing) beside the trace that
    was drawn for it.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    from sim.views.page import STYLE
    from sim.views.saving_figures import save

    beside_bps = np.array(trace.capacity_bps)[: len(series_bps)]
    drawn_bps = np.array(variation.trace(LONG_S, np.random.default_rng(1)).capacity_bps)
    lags = np.arange(1, max(3, min(60, len(series_bps) // 3)) + 1)
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=SIZE_IN, layout="constrained")
        (left, right), (below_left, below_right) = figure.subplots(2, 2)
        right.sharey(left)
        for axes, bps, name, colour in (
            (left, series_bps, "measured", "C0"),
            (right, beside_bps, "drawn from the fit", "C1"),
        ):
            axes.plot(np.arange(len(bps)), bps / 1e6, color=colour, linewidth=0.7)
            axes.set(title=name, xlabel="time, s", ylabel="Mbit/s", ylim=(0, None))
        for bps, name in ((series_bps, "measured"), (drawn_bps, "drawn from the fit")):
            below_left.plot(np.nanquantile(bps, SHARES) / 1e6, SHARES, label=name)
        below_left.set(
            xlabel="Mbit/s", ylabel="share of seconds below", ylim=(0, 1), xlim=(0, None)
        )
        below_right.plot(lags, autocorrelation(series_bps, lags), label="measured")
        below_right.plot(lags, autocorrelation(drawn_bps, lags), label="drawn from the fit")
        below_right.plot(
            lags,
            max(0.0, measured.lag1) ** lags,
            color="C7",
            linestyle="--",
            label="one AR(1) of its lag 1",
        )
        below_right.set(xlabel="lag, s", ylabel="autocorrelation", ylim=(-0.4, 1))
        below_right.axhline(0, color="black", linewidth=0.5)
        for axes in (below_left, below_right):
            axes.legend()
        figure.suptitle(
            f"{title}: CV {measured.cv:.2f}, lag 1 {measured.lag1:.2f}, {variation.slow_share:.0%} "
            "slow",
            fontsize=9,
        )
        save(figure, path)
