"""Kill runs at random instants and resume them: python benchmarks/kills.py [--kills 40] [--seed 0]
[--only fwdllm,compare]

Each kill is a `kill -9` of a real `mobifleet run` (or `mobifleet compare`): one in five while it
starts, the others at an instant drawn over the time that an undisturbed one learns. What it left is
taken up by `--resume` (by running `compare` again), and must end with the undisturbed digest.

Every process writes down which piece of learning it has computed and how long that took. Prints,
for each kill, how much of the undisturbed run's learning was done by then, and the share of this
that was computed again; exits with 1 where a digest differs, or where a late kill, beyond half of
the learning, cost more than a fifth. Takes about a quarter of an hour.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml

STARTING = 0.25  # kills while it starts, to one while it learns
LATE, MOST = (
    0.5,
    0.2,
)  # of the learning: from where a kill is late, and what may then be computed again
ROUNDS = {"participation": 1.0, "device_batch": 8, "evaluate_every": 1}
METHODS = {
    "fed-mobillm": {"kind": "fed-mobillm", "replay": 60, "ship_side_network": False},
    "fedavg-lora": {"kind": "fedavg-lora", "rounds": 8, **ROUNDS},
    "splitfed-v1": {"kind": "splitfed-v1", "rounds": 4, **ROUNDS},
    "fwdllm": {"kind": "fwdllm", "rounds": 4, "variance_threshold": 0.1, "most_asks": 2, **ROUNDS},
}
SCENARIO = {
    "name": "kills",
    "task": {"dataset": "trec-questions", "train": 48, "test": 30, "max_tokens": 32},
    "fleet": [
        {"count": 3, "device": "jetson-tx2", "backbone": "minilm-l2", "link": "lte"},
        {"count": 3, "device": "jetson-xavier-nx", "backbone": "minilm-l4", "link": "wifi-home"},
    ],
    "server": {"ingress": "1 Gbit/s"},
    "evaluate_every": 10,
}
NOTING = """
import json, sys, time
from sim.kernel.learned import Piece
from sim.cli import main as cli
results, run, notes = Piece.results, Piece.run, open(sys.argv.pop(1), "a", buffering=1)
def named(piece, key, revive):
    piece.key = key
    return results(piece, key, revive)
def noted(piece):
    begin = time.perf_counter()
    run(piece)
    print(json.dumps([piece.key, time.perf_counter() - begin, time.time()]), file=notes)
Piece.results, Piece.run = named, noted
cli.main()
"""


@dataclass(frozen=True)
class Kill:
    """What one kill cost."""

    after: str
    had_ended: bool
    is_equal: bool
    learning_done: float  # share of the undisturbed run's seconds
    repeated: float  # share of those done
    pieces_done: int
    pieces_repeated: int

    @property
    def is_late(self) -> bool:
        """Whether more than half had been learned."""
        return self.learning_done > LATE

    @property
    def is_good(self) -> bool:
        """Whether it is as promised."""
        return self.is_equal and (not self.is_late or self.repeated <= MOST)


class Subject:
    """A method, or a comparison of all, in a folder of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        self._is_run, self._folder = name != "compare", folder
        folder.mkdir()
        what = {"method": METHODS["fed-mobillm"]}
        what |= (
            {"method": METHODS[name]}
            if self._is_run
            else {"compare": {"methods": shortened(METHODS)}}
        )
        (folder / "scenario.yaml").write_text(
            yaml.safe_dump({**SCENARIO, **what}), encoding="utf-8"
        )
        begin = time.time()
        self.digests, self.seconds = self._to_its_end("straight")
        ends_s = [end_s for _, _, end_s in self._lines("straight-after.jsonl")]
        self._starts_s, self._learns_s = ends_s[0] - begin, ends_s[-1] - ends_s[0]

    def _begin(self, out: str, notes: str, *more: str) -> subprocess.Popen:
        verb = ["run", "scenario.yaml", "--workers", "1", "--quiet", "--no-figures", *more]
        argv = verb if self._is_run else ["compare", "scenario.yaml", "--processes", "1"]
        (self._folder / notes).touch()
        return subprocess.Popen(
            [sys.executable, "-c", NOTING, notes, *argv, "--out", out],
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _to_its_end(self, out: str, *more: str) -> tuple[dict[str, str], Counter]:
        process = self._begin(out, f"{out}-after.jsonl", *more)
        _, errors = process.communicate()
        if process.returncode:
            raise SystemExit(f"{self._folder / out}: exit code {process.returncode}\n{errors}")
        found = self._folder.glob(f"{out}/**/summary.json")
        digests = {
            str(file.parent.relative_to(self._folder / out)): _read(file)["digest"]
            for file in found
        }
        return digests, self._noted(f"{out}-after.jsonl")

    def _lines(self, name: str) -> list[list]:
        """What was noted, without a last line that was being written."""
        return [
            json.loads(line)
            for line in (self._folder / name).read_text(encoding="utf-8").split("\n")[:-1]
        ]

    def _noted(self, name: str) -> Counter:
        """Seconds by piece."""
        return Counter({key: seconds for key, seconds, _ in self._lines(name)})

    def kill(self, number: int, when: float) -> Kill:
        """Kill it at this share of its learning (negative: while it starts), and let it go on to
        its end.
        """
        out = f"killed-{number}"
        process = self._begin(out, f"{out}-before.jsonl")
        if when < 0:
            at_s, since = (1 + when / STARTING) * self._starts_s, "of starting"
        else:
            while process.poll() is None and not self._lines(f"{out}-before.jsonl"):
                time.sleep(0.01)
            at_s, since = when * self._learns_s, f"of learning ({self._learns_s:.1f} s)"
        try:
            process.wait(at_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        before = self._noted(f"{out}-before.jsonl")
        manifest = self._folder / out / "manifest.json"
        status = _read(manifest)["status"] if manifest.is_file() else "none"
        had_ended = status == "finished" or process.returncode == 0
        if had_ended and self._is_run:
            return Kill(f"{at_s:4.1f} s {since}", True, True, 1.0, 0.0, len(before), 0)
        resume = ["--resume"] if self._is_run and status != "none" else []
        digests, after = self._to_its_end(out, *resume)
        again_s = sum(seconds for key, seconds in before.items() if key in after)
        return Kill(
            f"{at_s:4.1f} s {since}",
            had_ended,
            digests == self.digests,
            sum(self.seconds[key] for key in before) / sum(self.seconds.values()),
            again_s / (sum(before.values()) or 1.0),
            len(before),
            len(before.keys() & after.keys()),
        )


def shortened(methods: dict) -> dict:
    """Half as many rounds of each, as all of them are in one comparison."""
    return {
        label: {k: v // 2 if k in ("rounds", "replay") else v for k, v in method.items()}
        for label, method in methods.items()
    }


def _read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def tell(name: str, subject: Subject, kills: list[Kill]) -> None:
    """One line for a subject."""
    late = [kill for kill in kills if kill.is_late and not kill.had_ended]
    worst, usual = (
        f(kill.repeated for kill in late) if late else 0.0 for f in (max, statistics.median)
    )
    print(
        f"{name:12} learning {sum(subject.seconds.values()):5.1f} s in {len(subject.seconds):4} "
        f"pieces; {len(kills)} kills, "
        f"{sum(kill.is_equal for kill in kills)} equal; {len(late)} late, repeat: median "
        f"{usual:.1%}, worst {worst:.1%}",
        flush=True,
    )


def main() -> None:
    """Kill, resume, tell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join([*METHODS, "compare"]))
    args = parser.parse_args()
    names, instants, are_good = args.only.split(","), random.Random(args.seed), True
    with tempfile.TemporaryDirectory() as scratch:
        for place, name in enumerate(names):
            subject, kills = Subject(name, Path(scratch) / name), []
            for number in range(len(range(place, args.kills, len(names)))):
                kills.append(kill := subject.kill(number, instants.uniform(-STARTING, 1)))
                print(
                    f"  {name}: killed after {kill.after}, {kill.learning_done:4.0%} of it done; "
                    f"again: {kill.repeated:6.1%} "
                    f"of this, {kill.pieces_repeated} of {kill.pieces_done} pieces"
                    f"{'' if kill.is_equal else '; ANOTHER DIGEST'}"
                    f"{'; had ended' if kill.had_ended else ''}",
                    flush=True,
                )
            are_good &= all(kill.is_good for kill in kills)
            tell(name, subject, kills)
    raise SystemExit(not are_good)


if __name__ == "__main__":
    main()
