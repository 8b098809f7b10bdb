"""Counts of what came of asking devices: rounds, those that nobody answered, and the first numbers
that were not finite.
"""

from __future__ import annotations

from collections import Counter


class Tally:
    """Counts of a run's rounds, and what became of those who were asked in rounds that nobody
    answered.
    """

    def __init__(self) -> None:
        self.rounds = self.without_answer = self.left_out = 0
        self.diverged: dict[str, str | int | float] | None = None
        self.missed: Counter[str] = Counter()
        self._of_this_round: list[str] = []

    def miss(self, how: str) -> None:
        """One of those asked in the present round has not answered."""
        self._of_this_round.append(how)

    def round(self, counted: int) -> None:
        """A round is over; so many of its answers counted."""
        self.rounds += 1
        if not counted:
            self.without_answer += 1
            self.missed.update(self._of_this_round)
        self._of_this_round.clear()

    def diverge(self, who: str, what: str, update: int, at_s: float) -> None:
        """Note where numbers were first not finite: a device or the server, what of it, and in
        which update.
        """
        self.diverged = self.diverged or {
            "device": who,
            "update": update,
            "what": what,
            "at_s": at_s,
        }
