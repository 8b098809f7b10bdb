"""What a step of the side network costs beside a plain loop of the same steps:
python benchmarks/side_steps.py [--steps 400] [--repeat 5]

The plain loop is the method as one would write it down: records of 32 draws stacked backbone by
backbone, a pass each, backward, torch's own AdamW, and the running mean of the weights. Ours is
`SideNetworkTrainer.train` on the very same records. Both begin alike, so that after the last step
their weights can be compared. Milliseconds of CPU time a step on one thread, both in turn, best of
several.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from learning.side.config import SideNetworkConfig, shape_for
from learning.side.network import SideNetwork
from learning.side.tuning import SideNetworkTrainer, Training

BATCH, RECORDS, CLASSES = 32, 512, 6
FLEET = {"minilm-l2": 384, "minilm-l4": 384, "minilm": 384}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print and return the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=1, help="sampled layers; the quickstart's 1")
    parser.add_argument("--widths", default="384,384,384", help="of the fleet's backbones")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    widths = dict(zip(FLEET, map(int, given.widths.split(",")), strict=True))
    config = SideNetworkConfig()
    shape = shape_for(config, given.blocks, widths, CLASSES)
    rng = np.random.default_rng(0)
    names = rng.choice(list(widths), RECORDS)
    records = [
        (
            str(name),
            torch.from_numpy(rng.normal(size=(shape.vectors, widths[name])).astype(np.float32)),
            torch.from_numpy(rng.normal(size=CLASSES).astype(np.float32)),
        )
        for name in names
    ]
    draws = [np.sort(rng.choice(RECORDS, BATCH, replace=False)) for _ in range(given.steps)]
    best, ended = {"plain": float("inf"), "ours": float("inf")}, {}
    for _ in range(given.repeat):
        for name, way in (("plain", Plain), ("ours", Ours)):
            one = way(shape, config, records)
            began_s = time.process_time()
            for draw in draws:
                one.step([records[i] for i in draw])
            best[name] = min(best[name], (time.process_time() - began_s) / given.steps * 1e3)
            ended[name] = one.averaged.state_dict()
    found = {
        "blocks": shape.blocks,
        "numbers": sum(p.numel() for p in SideNetwork(shape, config).parameters()),
        "plain_ms": best["plain"],
        "ours_ms": best["ours"],
        "ours_to_plain": best["ours"] / best["plain"],
        "off_most": max(
            float((ended["plain"][key].double() - value.double()).abs().max())
            for key, value in ended["ours"].items()
        ),
    }
    print(json.dumps(found, indent=1))
    return found


class Ours:
    """The server's trainer."""

    def __init__(self, shape: Any, config: SideNetworkConfig, records: list) -> None:
        self.trainer = SideNetworkTrainer(shape, config, Training(), {}, seed=0)
        self.averaged = self.trainer.averaged
        for backbone, value, _ in records:
            self.trainer.observe(backbone, value[None])

    def step(self, records: list) -> None:
        """One update."""
        self.trainer.train(records)


class Plain:
    """The same update, written down plainly."""

    def __init__(self, shape: Any, config: SideNetworkConfig, records: list) -> None:
        self.network = SideNetwork(shape, config, 0)
        for backbone, value, _ in records:
            self.network.observe(value[None], backbone)
        self.averaged = copy.deepcopy(self.network).eval()
        matrices = [p for p in self.network.parameters() if p.ndim >= 2]
        others = [p for p in self.network.parameters() if p.ndim < 2]
        groups = [
            {"params": matrices, "weight_decay": Training().weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=Training().learning_rate)
        self.steps = 0

    def step(self, records: list) -> None:
        """One update."""
        self.steps += 1
        masks = torch.Generator().manual_seed(self.steps)
        loss = torch.zeros(())
        for backbone in sorted({name for name, _, _ in records}):
            values = torch.stack([value for name, value, _ in records if name == backbone])
            targets = torch.stack([target for name, _, target in records if name == backbone])
            y_s_BC = self.network.training_forward([(backbone, values)], masks)
            loss = loss + ((y_s_BC - targets) ** 2).sum() / len(records)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        decay = min(self.network.config.averaging, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            pairs = zip(self.averaged.parameters(), self.network.parameters(), strict=True)
            for mean, now in pairs:
                mean.lerp_(now, 1 - decay)


if __name__ == "__main__":
    main()
