"""What every learner that learns has in common: its verbs are begun by name, and what they give is
`Learned`.

A verb runs at the virtual start of its work and only begins pieces of learning (`host.learn`),
whose functions are pure; what it gives is passed on unread. So a resumed run need not compute what
it has computed before, and no learner knows of it.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from learning.cost.costs import Cost
from sim.kernel.learner import NullLearner
from sim.kernel.work import Work

if TYPE_CHECKING:
    from sim.simulation import Simulation


class RealLearner(NullLearner):
    """A learner whose work computes."""

    sim: Simulation

    def work(self, cost: Cost, name: str, *args: Any) -> Work:
        """A piece of work that takes time and begins `self.name(*args)`."""
        return Work(cost, functools.partial(getattr(self, name), *args))
