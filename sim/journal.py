"""Learning results of a run, kept by the history that led to them, so that a killed run can be resumed.

A resumed run replays its events from the start (cheap) and takes the learning from here (dear): evaluations by the key of
the learner's history, and one checkpoint from which training really goes on. A line is written at once; a torn last line
is ignored.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sim.writing import replacing, writing


class CannotResume(ValueError):
    """The journal does not belong to this run's history; the message says what to do."""


class Journal:
    """Journal and checkpoint of one run directory; `folder` None keeps nothing."""

    def __init__(self, folder: Path | None, resume: bool = False, seconds_between_checkpoints: float = 10.0) -> None:
        self._file = folder / "journal.jsonl" if folder else None
        self.checkpoint = folder / "checkpoint.safetensors" if folder else None
        self._every_s, self._last_s = seconds_between_checkpoints, time.monotonic()
        self._entries: dict[str, dict[str, Any]] = {}
        self.checkpoint_key: str | None = None
        if folder and resume:
            self._read()
        elif folder:
            self._file.unlink(missing_ok=True)
            self.checkpoint.unlink(missing_ok=True)

    def _read(self) -> None:
        from learning.side_tuning import checkpoint_key

        text = self._file.read_text(encoding="utf-8", errors="replace") if self._file.is_file() else ""
        for line in text.splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # the line that was being written when the run was killed
                continue
            self._entries[entry["key"]] = entry
        if text and not text.endswith("\n"):
            with self._file.open("a", encoding="utf-8") as file:
                file.write("\n")  # what follows shall not be torn with it
        self.checkpoint_key = checkpoint_key(self.checkpoint)

    def recall(self, key: str) -> dict[str, float]:
        """The scores evaluated at this history; CannotResume if the replay took another course."""
        try:
            return self._entries[key]["scores"]
        except KeyError:
            raise self.astray() from None

    def loss(self, key: str) -> float | None:
        """The loss of the update that led to this history, where it was noted."""
        return self._entries.get(key, {}).get("loss")

    @staticmethod
    def astray() -> CannotResume:
        """The error of a replay that never comes to where the interrupted run was."""
        return CannotResume(
            "the replay differs from the interrupted run (other code, other libraries or another machine): "
            "run the scenario anew, without --resume"
        )

    def remember(
        self, key: str, scores: dict[str, float], loss: float | None, write_checkpoint: Callable[[Path], None]
    ) -> None:
        """Note scores and loss at this history, and write a checkpoint if the last one is old enough."""
        if self._file is None or key in self._entries:
            return
        self._entries[key] = {"key": key, "scores": scores, "loss": loss}
        with writing(self._file), self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self._entries[key]) + "\n")
        if time.monotonic() - self._last_s >= self._every_s:
            with replacing(self.checkpoint) as temporary:
                write_checkpoint(temporary)
            self._last_s = time.monotonic()
