"""What the quickstart costs beside the computing that nobody can spare, and what stored activations
spare: python benchmarks/quickstart.py [--scenario quickstart] [--repeat 3]

Not to be spared are a forward pass of each device's texts and of the test texts, sorted by length,
through each backbone (`forwards.plain`), and as many plain steps of the side network as the run has
updates (`side_steps.Plain`). Its ridge solutions, which such a loop has not, stand apart: the
products and eigenvalues of each, on random records of its size. A run is a `mobifleet.run` with
everything in it but figures, one worker: cold with an empty store of activations, then warm with
what it has stored. Seconds of CPU time in one process, in turn, best of several, after one of each
that warms up.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import forwards
import numpy as np
import side_steps
import torch
from gpu import use_cache_without_activations

import mobifleet
from learning.backbones.loading import load_model
from learning.side.config import SideNetworkConfig, shape_for
from learning.side.skip import Skip
from sim.simulation import Simulation

RECORDS = 512


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print and return the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenario", default="quickstart")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="dotted.key=value")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    changes = {key: json.loads(value) for key, _, value in (s.partition("=") for s in given.set)}
    scenario = mobifleet.load(given.scenario, changes)
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ):
        runs = Runs(scenario, Path(folder))
        with solved() as sizes:
            updates = runs.cold()["totals"]["updates"]
        runs.warm()
        least = Least(scenario, Path(given.scenario).parent, updates, sizes)
        ways = {
            "forward": least.forward,
            "steps": least.steps,
            "ridge": least.ridge,
            "cold": runs.cold,
            "warm": runs.warm,
        }
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(given.repeat):
            for name, way in ways.items():
                best[name] = min(best[name], seconds(way))
    found = {
        "texts_read": least.texts,
        "updates": updates,
        **{f"{name}_s": taken for name, taken in best.items()},
        "ridge_solutions": len(sizes),
        "cold_to_least": best["cold"] / (best["forward"] + best["steps"]),
        "cold_to_least_with_ridge": best["cold"]
        / (best["forward"] + best["steps"] + best["ridge"]),
        "warm_to_cold": best["warm"] / best["cold"],
    }
    print(json.dumps(found, indent=1))
    return found


def seconds(way: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    began_s = time.process_time()
    way()
    return time.process_time() - began_s


@contextmanager
def solved() -> Iterator[list[tuple[int, ...]]]:
    """Records and inputs of the ridge regressions that are solved meanwhile."""
    sizes, fit = list[tuple[int, ...]](), Skip.fit

    def noting(skip: Skip, x_NF: torch.Tensor, *how: Any) -> float:
        sizes.append(tuple(x_NF.shape))
        return fit(skip, x_NF, *how)

    with mock.patch.object(Skip, "fit", noting):
        yield sizes


class Runs:
    """Whole runs, whose store of activations is a folder of their own."""

    def __init__(self, scenario: Any, folder: Path) -> None:
        self.scenario, self.folder = scenario, folder

    def cold(self) -> dict[str, Any]:
        """With nothing in the store."""
        use_cache_without_activations(Path(tempfile.mkdtemp(dir=self.folder)))
        return self.warm()

    def warm(self) -> dict[str, Any]:
        """With what the last cold one has stored."""
        out = Path(tempfile.mkdtemp(dir=self.folder)) / "run"
        run = mobifleet.run(self.scenario, out=out, workers=1, figures=False, quiet=True)
        return run.summary


class Least:
    """The passes and the steps that the scenario cannot do without, written down plainly."""

    def __init__(
        self, scenario: Any, folder: Path, updates: int, solutions: Sequence[tuple[int, ...]]
    ) -> None:
        sim = Simulation(scenario, folder, dry=True)
        self.updates, self.parts, widths = updates, [], {}
        for name, spec in sim.costing.learned.items():
            mine = [device.samples for device in sim.devices if device.backbone == name]
            samples = np.unique(np.concatenate([*mine, sim.task.held_out]))
            self.parts.append((load_model(spec), sim.task.tokens(spec, samples)))
            widths[name] = int(self.parts[-1][0].config.hidden_size)
        self.texts = sum(len(tokens) for _, tokens in self.parts)
        self.config, rng = SideNetworkConfig(), np.random.default_rng(0)
        self.shape = shape_for(self.config, 1, widths, sim.task.classes)
        names = [str(name) for name in rng.choice(list(widths), RECORDS)]
        self.records = [
            (name, *map(torch.from_numpy, self._record(rng, widths[name], sim.task.classes)))
            for name in names
        ]
        size = side_steps.BATCH
        self.solutions = [torch.from_numpy(rng.normal(size=shape)) for shape in solutions]
        self.draws = [rng.choice(RECORDS, size, replace=False) for _ in range(updates)]

    def _record(self, rng: np.random.Generator, width: int, classes: int) -> list[np.ndarray]:
        sizes = ((self.shape.vectors, width), (classes,))
        return [rng.normal(size=size).astype(np.float32) for size in sizes]

    def forward(self) -> None:
        """Each backbone over its devices' texts and the test texts."""
        for model, tokens in self.parts:
            forwards.plain(model, tokens)

    def steps(self) -> None:
        """As many steps as there are updates."""
        plain = side_steps.Plain(self.shape, self.config, self.records)
        for draw in self.draws:
            plain.step([self.records[i] for i in draw])

    def ridge(self) -> None:
        """The principal axes of the records of every solution, and the records along them."""
        for x_NF in self.solutions:
            gram = x_NF.T @ x_NF if len(x_NF) > x_NF.shape[1] else x_NF @ x_NF.T
            _, axes = torch.linalg.eigh(gram)
            x_NF @ (axes if len(axes) == x_NF.shape[1] else x_NF.T @ axes)


if __name__ == "__main__":
    main()
