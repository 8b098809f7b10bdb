"""What a run has learned so far, kept in its folder so that a killed run can be resumed.

A resumed run replays its events from the start (cheap) and takes the learning from here (dear).
Small results that the clock's course or a metric asks for are *notes*, one line each, written at
once. A *checkpoint* holds, after so many pieces of learning, all values that anything could still
ask for; from there on the run learns for real. Both go by the keys of `sim.kernel.learned`.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from inputs.files import FileProblem, parse_json, read_text
from sim.kernel.learned import Learned
from sim.kernel.writing import replacing, writing

if TYPE_CHECKING:
    from sim.kernel.checkpoint import Checkpoint

UNKNOWN = object()
LITTLE_S = 2.0  # of learning, that nobody minds to lose
SHARE_AT_STAKE = 0.1  # of the learning so far that a kill may cost, where checkpoints are cheap
SHARE_OF_TIME = 0.05  # of what is at stake that writing a checkpoint may take,
MUCH_AT_STAKE = 0.15  # unless so much of all learning is: then more
MOST_OF_TIME = 0.5

CHECKPOINT = "checkpoint.safetensors"


class CannotResume(ValueError):
    """The journal does not belong to this run's history; the message says what to do."""

    @classmethod
    def other_course(cls) -> CannotResume:
        """The error of a replay that takes another course than the interrupted run."""
        return cls(
            "the replay differs from the interrupted run (other code, other libraries or another "
            "machine): "
            "run the scenario anew, without --resume"
        )


class Journal:
    """Notes and checkpoint of one run directory; `folder` None keeps nothing.

    `position` is the number of pieces of learning before the checkpoint; `remarks` say what could
    not be used of them.
    """

    def __init__(
        self, folder: Path | None, resume: bool = False, seconds_between_checkpoints: float = 10.0
    ) -> None:
        self.keeps = folder is not None
        self.position = 0
        self.remarks: list[str] = []
        self._every_s = seconds_between_checkpoints
        self._seconds_a_byte = 2e-9
        self._not_before_s = 0.0
        self._notes: dict[str, object] = {}
        self._checkpoint: Checkpoint | None = None
        if folder is None:
            return
        self._file = folder / "journal.jsonl"
        self._checkpoint_file = folder / CHECKPOINT
        if resume:
            self._read()
        else:
            self.forget()

    def forget(self) -> None:
        """Remove both files; a run that is finished needs them no more."""
        if self.keeps:
            self._file.unlink(missing_ok=True)
            self._checkpoint_file.unlink(missing_ok=True)

    # --- notes

    def noted(self, key: str) -> object:
        """The small result of this history, or UNKNOWN."""
        return self._notes.get(key, UNKNOWN)

    def note(self, key: str, value: object) -> None:
        """Write down a small result: numbers, or lists and dicts of them."""
        self._notes[key] = value
        with writing(self._file), self._file.open("a", encoding="utf-8") as file:
            file.write(_line(key, value))

    # --- checkpoints

    def fetch(self, learned: Learned[object]) -> None:
        """Give a result of the interrupted run its value; CannotResume if that run never had it."""
        if self._checkpoint is None or learned.key not in self._checkpoint:
            raise CannotResume.other_course()
        value = self._checkpoint[learned.key]
        learned.set(learned.revive(value) if learned.revive else value)

    def is_due(self, at_stake_s: float, learning_s: float) -> bool:
        """Whether so many seconds of learning, of so many in all, should not be at stake any
        longer.
        """
        least_s = min(self._every_s, max(LITTLE_S, SHARE_AT_STAKE * learning_s))
        return self.keeps and at_stake_s >= max(least_s, self._not_before_s)

    def checkpoint(
        self, position: int, alive: Iterable[Learned[object]], at_stake_s: float, learning_s: float
    ) -> bool:
        """Write all values that can still be asked for, if that takes little time beside what is at
        stake; whether it did.
        """
        from sim.kernel.checkpoint import Packed

        begin, values = time.perf_counter(), {}
        for learned in alive:
            with suppress(
                CannotResume
            ):  # it was gone when the interrupted run wrote, so nobody asks for it
                values[learned.key] = learned.saved()
        packed = Packed(values)
        packing_s = time.perf_counter() - begin
        expected_s = packing_s + self._seconds_a_byte * packed.nbytes
        share = MOST_OF_TIME if at_stake_s > MUCH_AT_STAKE * learning_s else SHARE_OF_TIME
        if at_stake_s < expected_s / share and self._every_s > 0:
            # there may be less to write then; that this once took long must not put it off for long
            self._not_before_s = at_stake_s + min(packing_s / SHARE_OF_TIME, at_stake_s / 4)
            return False
        with replacing(self._checkpoint_file) as temporary:
            packed.write(temporary, position, len(self._notes))
        self._seconds_a_byte = (time.perf_counter() - begin) / max(packed.nbytes, 1 << 20)
        self._not_before_s = 0.0
        return True

    # --- reading what an interrupted run left

    def _read(self) -> None:
        text = ""
        if self._file.exists():
            try:
                text = read_text(self._file)
            except FileProblem as problem:
                self._cannot_use(problem)
        *lines, torn = text.split("\n")  # the last one was being written when the run was killed
        for number, line in enumerate(lines, 1):
            try:
                key, value = _parsed(line)
            except ValueError:
                self._cannot_use(f"{self._file}, line {number}: damaged")
            else:
                self._notes[key] = value
        if torn:
            os.truncate(self._file, len(text.encode()) - len(torn.encode()))
        if self._checkpoint_file.exists() and not self.remarks:
            self._open()

    def _open(self) -> None:
        from sim.kernel.checkpoint import Checkpoint

        try:
            found = Checkpoint(self._checkpoint_file)
        except ValueError as problem:
            self._cannot_use(problem)
            return
        if len(self._notes) < found.notes:
            self._cannot_use(f"{self._file}: holds {len(self._notes)} of {found.notes} notes")
        else:
            self._checkpoint, self.position = found, found.position

    def _cannot_use(self, problem: object) -> None:
        self.remarks = [f"{problem}; what the interrupted run had learned is computed again"]


def _line(key: str, value: object) -> str:
    return json.dumps({"key": key, "value": value, "sum": _sum(key, value)}) + "\n"


def _parsed(line: str) -> tuple[str, object]:
    """Key and value of a line; ValueError for one that was not written so."""
    entry = parse_json(line, "journal")
    if not isinstance(entry, dict) or entry.get("sum") != _sum(
        entry.get("key"), entry.get("value")
    ):
        raise ValueError("damaged")
    return entry["key"], entry["value"]


def _sum(key: object, value: object) -> str:
    return hashlib.blake2b(json.dumps([key, value]).encode(), digest_size=8).hexdigest()
