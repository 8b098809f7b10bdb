"""The workload that every peer runs, and how each is measured.

FedAvg of 100 clients with 32 texts of 32 tokens (256 words, 4 classes, which some of the words
tell), 10 clients a round, one epoch of SGD in batches of 8, one torch thread. Nothing of mobifleet
is imported, for it runs in the peers' environments, too.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import resource
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CLIENTS, TEXTS, TOKENS, WORDS, CLASSES = 100, 32, 32, 256, 4
A_ROUND, EPOCHS, BATCH, RATE = 10, 1, 8, 0.05
MODELS = {
    "tiny": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1},
    "transformer": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
}


def words(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Word numbers [clients, texts, tokens] below `WORDS`, and classes [clients, texts]."""
    rng = np.random.default_rng(seed)
    labels = np.arange(CLIENTS * TEXTS).reshape(CLIENTS, TEXTS) % CLASSES
    span = WORDS // (CLASSES + 1)
    drawn = rng.integers(0, WORDS - span * (CLASSES - 1), (CLIENTS, TEXTS, TOKENS))
    return span * labels[:, :, None] + drawn, labels


def clients() -> list[tuple[Tensor, Tensor]]:
    """Each client's word numbers [texts, tokens] and classes [texts]."""
    return [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in zip(*words(), strict=True)]


def model(name: str) -> nn.Module:
    """One of `MODELS` with the same random weights each time; word numbers [B, T] to logits."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    return Bert(bert_config(name))


@functools.cache
def kept(name: str) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """A model and the clients, built once in a process."""
    return model(name), clients()


def bert_config(name: str) -> dict[str, Any]:
    """A configuration as transformers has them, without its `model_type`."""
    return {
        "vocab_size": WORDS,
        "intermediate_size": 4 * MODELS[name]["hidden_size"],
        "max_position_embeddings": 2 * TOKENS,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        **MODELS[name],
    }


class Bert(nn.Module):
    """transformers' BERT, the mean over its tokens, a linear head: what mobifleet's fedavg-full
    trains of it.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        how = {"attn_implementation": "eager"}
        self.bert = BertModel(BertConfig(**config, **how), add_pooling_layer=False)
        self.head = nn.Linear(config["hidden_size"], CLASSES)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Logits [B, C]."""
        mask_BT = torch.ones_like(ids_BT)
        return self.head(self.bert(ids_BT, attention_mask=mask_BT).last_hidden_state.mean(1))


def loss_of(trained: nn.Module) -> float:
    """Mean cross-entropy over every client's texts."""
    ids, labels = (torch.cat(part) for part in zip(*clients(), strict=True))
    with torch.no_grad():
        return float(nn.functional.cross_entropy(trained(ids), labels))


# --- measuring


class Rounds:
    """The instants at which rounds end: `end` is called before the first, then after each.

    Processor time is that of this process, and with `children` of all that it started, too.
    """

    def __init__(self, children: bool = False) -> None:
        self.cpu: list[float] = []
        self.wall: list[float] = []
        self._children = children

    def end(self, *_: Any) -> None:
        """Now."""
        self.cpu.append(time.process_time() + (children_s() if self._children else 0.0))
        self.wall.append(time.perf_counter())

    def of(self, instants: list[float]) -> dict[str, float]:
        """The first round in seconds; of the others, milliseconds a client update."""
        before, first, *_, last = instants
        updates = (len(instants) - 2) * A_ROUND
        return {"first_s": first - before, "ms": (last - first) / updates * 1e3}


def children_s() -> float:
    """Processor seconds of what this process started, and of what that started."""
    import psutil

    spent = 0.0
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it ended meanwhile
            times = child.cpu_times()
            spent += times.user + times.system
    return spent


def measure(
    package: str,
    run: Callable[[str, int, Rounds], nn.Module | None],
    about: str | None,
    children: bool = False,
) -> None:
    """What each script does: for every model a plain loop, the peer, a plain loop; and print it.

    `run(model, rounds, instants)` trains so many rounds and gives the model that came of it.
    """
    from plain import plain_loop

    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("rounds", nargs="+", metavar="MODEL=ROUNDS", help="1 + those that count")
    found = {}
    for name, _, count in (part.partition("=") for part in parser.parse_args().rounds):
        before, peer, after = Rounds(), Rounds(children), Rounds()
        plain_loop(name, int(count), before)
        trained = run(name, int(count), peer)
        torch.use_deterministic_algorithms(False)
        same = plain_loop(name, int(count), after)
        found[name] = {
            "rounds": len(peer.cpu) - 1,
            "cpu": peer.of(peer.cpu),
            "wall": peer.of(peer.wall),
            "plain_cpu_ms": [loop.of(loop.cpu)["ms"] for loop in (before, after)],
            "loss": {
                "before": loss_of(model(name)),
                "plain": loss_of(same),
                "after": None if trained is None else loss_of(trained),
            },
        }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    told = {"version": version(package), "torch": torch.__version__, "peak_rss_mb": round(peak)}
    print(json.dumps({**told, "models": found}), flush=True)
    os._exit(0)  # some peers leave threads behind that take long to end
