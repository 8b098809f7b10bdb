"""Why there is no comparison; what it is made of are the planned runs of a sweep."""

from sim.sweep.planned_run import PlannedRun, SweepError

__all__ = ["CompareError", "PlannedRun"]


class CompareError(SweepError):
    """A comparison cannot be made; the message says why."""
