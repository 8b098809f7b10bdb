"""What a client update costs above a plain loop, and what threads gain:
python benchmarks/client_update.py [--rounds 20] [--repeat 5] [--only tiny,transformer]
python benchmarks/client_update.py --threads --only minilm-sized --rounds 2 --repeat 3

FedAvg of 100 devices with 32 texts of 32 tokens, 10 devices a round, one epoch of SGD in batches
of 8, every weight trained. A run of ours is a `mobifleet.run` with everything in it (clock,
charges, journal, aggregation, files); what it needs once is taken out by subtracting a run of one
round. The plain loop trains the same model on the same tensors, padded beforehand, by the same
optimiser, and averages; it has torch as it comes, without the deterministic kernels of ours. Both
alternate in one process; printed is the processor time of a client update, best of the repetitions.

--threads prints the wall time of a round with one worker, and with two: for a machine that does
nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import mobifleet
from learning.backbones.catalogue import find
from learning.data.texts import TextDataset
from learning.federated.local_training import inputs
from learning.federated.trainable import TrainableClassifier

DEVICES, TEXTS, TOKENS, BATCH, A_ROUND, CLASSES, RATE = 100, 32, 32, 8, 10, 4, 0.05
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1},
    "transformer": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "minilm-sized": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12},
}


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Measure, and print a line for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", default="tiny,transformer")
    parser.add_argument("--threads", action="store_true", help="two workers against one")
    given = parser.parse_args(argv)
    found = {}
    for name in given.only.split(","):
        measure = threads if given.threads else above_plain
        found[name] = measure(name, given.rounds, given.repeat)
        print(name, *(f"{what} {figure:.3f}" for what, figure in found[name].items()), sep="  ")
    return found


def above_plain(name: str, rounds: int, repeat: int) -> dict[str, float]:
    """Milliseconds of processor time of one client update, ours and plain."""
    loop, updates = PlainLoop(name), rounds * A_ROUND
    ours_of(name, 1)  # what a process does once
    few, many, plain = [], [], []
    for _ in range(repeat):
        few.append(_seconds(time.process_time, ours_of, name, 1))
        many.append(_seconds(time.process_time, ours_of, name, 1 + rounds))
        plain.append(_seconds(time.process_time, loop.rounds, rounds))
    ours_ms, plain_ms = ((s / updates * 1e3) for s in (min(many) - min(few), min(plain)))
    return {
        "ours_ms": ours_ms,
        "plain_ms": plain_ms,
        "above_ms": ours_ms - plain_ms,
        "ratio": ours_ms / plain_ms,
    }


def threads(name: str, rounds: int, repeat: int) -> dict[str, float]:
    """Seconds of wall time of a round with one worker and with two."""
    ours_of(name, 1)
    walls: dict[tuple[int, int], list[float]] = {}
    for _, workers, count in itertools.product(range(repeat), (1, 2), (1, 1 + rounds)):
        took = _seconds(time.perf_counter, ours_of, name, count, workers)
        walls.setdefault((workers, count), []).append(took)
    one, two = ((min(walls[w, 1 + rounds]) - min(walls[w, 1])) / rounds for w in (1, 2))
    return {"one_s": one, "two_s": two, "gain": one / two}


def _seconds(clock: Callable[[], float], function: Callable[..., object], *how: Any) -> float:
    begin = clock()
    function(*how)
    return clock() - begin


# --- ours


def ours_of(name: str, rounds: int, workers: int | str = 1) -> mobifleet.Run:
    """A run of so many rounds."""
    scenario = {
        "name": f"client-update-{name}",
        "task": {
            "dataset": "trec-questions",
            "train": DEVICES * TEXTS,
            "test": 4,
            "max_tokens": TOKENS,
            "partition": {"kind": "iid"},
        },
        "backbones": {name: {"random": config_of(name)}},
        "fleet": [{"count": DEVICES, "device": "jetson-tx2", "backbone": name, "link": "lte"}],
        "method": {
            "kind": "fedavg-full",
            "rounds": rounds,
            "participation": A_ROUND / DEVICES,
            "device_batch": BATCH,
            "learning_rate": RATE,
            "optimiser": "sgd",
            "schedule": "constant",
            "dropout": 0.0,
            "head": "linear",
            "evaluate_every": 1_000_000,
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scenario.yaml"
        file.write_text(json.dumps(scenario), encoding="utf-8")  # which is YAML, too
        how: dict[str, Any] = {"workers": workers, "figures": False, "quiet": True}
        return mobifleet.run(file, out=Path(folder) / "run", texts=TEXT, **how)


def config_of(name: str) -> dict[str, Any]:
    """The configuration of a model."""
    sizes = MODELS[name]
    return {
        "model_type": "bert",
        "vocab_size": 256,
        "intermediate_size": 4 * sizes["hidden_size"],
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        **sizes,
    }


def texts(count: int) -> TextDataset:
    """So many texts of one length, whose class some of their words tell."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % CLASSES
    words = 50 * labels[:, None] + rng.integers(0, 200, (count, TOKENS - 1))
    said = [" ".join(f"w{word}" for word in row) for row in words]
    names = tuple(f"class {label}" for label in range(CLASSES))
    return TextDataset("made", said, None, labels.astype(np.int64), names)


TEXT = texts(DEVICES * TEXTS + 4)


# --- plain


class PlainLoop:
    """The same updates without a framework: every device's texts padded once, one model."""

    def __init__(self, name: str, devices: int = DEVICES) -> None:
        from learning.backbones.tokens import tokenise

        torch.set_num_threads(1)
        spec = find(name, {name: {"random": config_of(name)}})
        self.model = TrainableClassifier(spec, "full", CLASSES)
        self.parameters = list(self.model.trainable_parameters().values())
        self.state = [p.detach().clone() for p in self.parameters]
        self.devices = []
        for k in range(devices):
            own = slice(k * TEXTS, (k + 1) * TEXTS)
            tokens = tokenise(spec, TEXT.texts[own], None, TOKENS)
            self.devices.append((*inputs(tokens, range(TEXTS)), torch.tensor(TEXT.labels[own])))

    def rounds(self, count: int) -> None:
        """Train and average so many times."""
        torch.use_deterministic_algorithms(False)
        rng = np.random.default_rng(0)
        for _ in range(count):
            sums = [torch.zeros_like(p) for p in self.state]
            for k in rng.permutation(len(self.devices))[:A_ROUND]:
                self.train(self.devices[k], rng)
                torch._foreach_add_(sums, [p.detach() for p in self.parameters])
            self.state = [total / A_ROUND for total in sums]

    def train(self, device: tuple[torch.Tensor | None, ...], rng: np.random.Generator) -> None:
        """One epoch."""
        ids, mask, _, labels = device  # single texts have no segments
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.state)
        optimiser = torch.optim.SGD(self.parameters, lr=RATE)
        for chosen in np.split(rng.permutation(TEXTS), TEXTS // BATCH):
            rows = torch.from_numpy(chosen)
            logits = self.model(ids[rows], mask[rows])
            loss = F.cross_entropy(logits, labels[rows])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()


if __name__ == "__main__":
    main()
