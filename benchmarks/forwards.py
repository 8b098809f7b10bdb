"""What frozen forwards cost beside a plain loop of the same model over the same texts:
python benchmarks/forwards.py [--backbone minilm] [--data trec-questions] [--texts 1000]
python benchmarks/forwards.py --threads

The plain loop sorts the texts by length, pads batches of 32 to their longest text, asks
transformers for the hidden states and takes means over real tokens. Ours is what a run does before
its clock starts: `pooled_activations` into an empty store, files and checksums included. CPU time
on one thread, both in turn, best of several. `--cuts 2,4` lets a fleet read the texts with cuts of
the model, too, of which a fourth of the texts is everybody's, each cut alone and with what deeper
ones have read. `--threads` prints the wall time with one worker and with two instead: for a machine
that does nothing else.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from learning.backbones import batches, catalogue
from learning.backbones.backbone import pad
from learning.backbones.loading import load_model
from learning.backbones.tokens import Tokens, tokenise
from learning.data import texts
from learning.host_device import host_device
from learning.side import readouts
from learning.side.activation_store import ActivationStore
from sim.kernel.host import Host

PLAIN_BATCH = 32


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print and return the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="minilm")
    parser.add_argument("--data", default="trec-questions")
    parser.add_argument("--texts", type=int, default=1000)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--cuts", default="", help="depths beside the whole, e.g. 2,4")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", action="store_true", help="two workers against one")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    spec, data = catalogue.find(given.backbone), texts.load(given.data)
    chosen = np.random.default_rng(0).permutation(len(data))[: given.texts]
    tokens = tokenise(spec, [data.texts[i] for i in chosen], None, given.max_tokens)
    if given.threads:
        found = threads(spec, tokens, given.repeat)
        print(json.dumps(found, indent=1))
        return found
    model = load_model(spec)
    both = {"plain": lambda: plain(model, tokens), "ours": lambda: ours(spec, tokens)}
    best, values = best_of(both, given.repeat)
    found = counts(spec, tokens) | {
        "plain_s": best["plain"],
        "ours_s": best["ours"],
        "throughput": best["plain"] / best["ours"],
        "off_most": float(np.abs(values["plain"] - values["ours"]).max()),
    }
    if given.cuts:
        depths = [int(depth) for depth in given.cuts.split(",")]
        found |= fleet(given.backbone, depths, tokens, given.repeat)
    print(json.dumps(found, indent=1))
    return found


def best_of(
    ways: dict[str, Callable[[], np.ndarray]],
    repeat: int,
    clock: Callable[[], float] = time.process_time,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The least seconds of each, in turn, after one that warms up; and what each gave."""
    values = {name: way() for name, way in ways.items()}
    best = dict.fromkeys(ways, float("inf"))
    for name, way in itertools.chain.from_iterable(ways.items() for _ in range(repeat)):
        began_s = clock()
        way()
        best[name] = min(best[name], clock() - began_s)
    return best, values


def threads(spec: catalogue.BackboneSpec, tokens: Tokens, repeat: int) -> dict[str, Any]:
    """Wall seconds of reading the texts with one worker and with two."""
    hosts = {"one": Host(1), "two": Host(2)}
    ways = {name: functools.partial(ours, spec, tokens, host.map) for name, host in hosts.items()}
    best, values = best_of(ways, repeat, time.perf_counter)
    for host in hosts.values():
        host.close()
    return {
        "one_s": best["one"],
        "two_s": best["two"],
        "gain": best["one"] / best["two"],
        "same_bits": bool(np.array_equal(values["one"], values["two"])),
    }


def plain(model: Any, tokens: Tokens) -> np.ndarray:
    """Means over tokens of every state [n, layers + 1, D], as one would write it."""
    out: list[np.ndarray | None] = [None] * len(tokens)
    order = np.argsort(tokens.lengths(), kind="stable")
    for start in range(0, len(order), PLAIN_BATCH):
        chosen = order[start : start + PLAIN_BATCH]
        ids_BT, mask_BT = pad([tokens.ids[i] for i in chosen])
        with torch.inference_mode():
            states = model(
                input_ids=ids_BT, attention_mask=mask_BT, output_hidden_states=True
            ).hidden_states
            mask_BT1 = mask_BT[..., None]
            means = [(h_BTD * mask_BT1).sum(dim=1) / mask_BT1.sum(dim=1) for h_BTD in states]
            for index, value in zip(chosen, torch.stack(means, dim=1).numpy(), strict=True):
                out[index] = value
    return np.stack([value for value in out if value is not None])


def ours(
    spec: catalogue.BackboneSpec, tokens: Tokens, spread: Callable[..., Any] = itertools.starmap
) -> np.ndarray:
    """The same by way of an empty store, its pieces spread over workers."""
    with tempfile.TemporaryDirectory() as folder:
        store = ActivationStore(Path(folder))
        return readouts.pooled_activations(spec, tokens, "mean", store, spread).take()


def counts(spec: catalogue.BackboneSpec, tokens: Tokens) -> dict[str, float]:
    """Tokens of the texts, and how many both ways compute for each."""
    lengths = tokens.lengths()
    host, width = host_device(), catalogue.width_of(catalogue.config_of(spec))

    def rows(length: int) -> int:
        return host.rows(length, width)

    ours = sum(
        length * rows(length)
        for piece in batches.pieces(lengths, host.length_step, rows, host.texts)
        for length, _ in batches.batches(batches.padded(lengths[piece], host.length_step), rows)
    )
    ends = np.sort(lengths)
    parts = [ends[i : i + PLAIN_BATCH] for i in range(0, len(ends), PLAIN_BATCH)]
    plain = sum(len(part) * part.max() for part in parts)
    real = int(lengths.sum())
    return {
        "texts": len(tokens),
        "tokens": real,
        "plain_computed_a_token": float(plain / real),
        "ours_computed_a_token": float(ours / real),
    }


def fleet(name: str, depths: list[int], tokens: Tokens, repeat: int) -> dict[str, Any]:
    """A fleet of cuts that shares a fourth of its texts: CPU time alone, and by way of deeper ones;
    and the share of layers x texts that is not computed.
    """
    specs = [catalogue.find(name), *(catalogue.find(f"{name}-l{d}") for d in sorted(depths)[::-1])]
    everybody, own = np.split(np.arange(len(tokens)), [len(tokens) // 4])
    parts = [np.concatenate([everybody, mine]) for mine in np.array_split(own, len(specs))]
    sets = [Tokens([tokens.ids[i] for i in part]) for part in parts]

    def read(is_shared: bool) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            store, read_before = ActivationStore(Path(folder)), []
            for spec, mine in zip(specs, sets, strict=True):
                deeper = read_before if is_shared else []
                last = readouts.pooled_activations(
                    spec, mine, "mean", store, itertools.starmap, deeper=deeper
                )
                read_before = [*read_before, spec]
            return last.take()

    best, values = best_of({"alone": lambda: read(False), "shared": lambda: read(True)}, repeat)
    layers = [catalogue.depth_of(catalogue.config_of(spec)) for spec in specs]
    saved = sum(layers[1:]) * len(everybody)
    asked = sum(n * len(part) for n, part in zip(layers, parts, strict=True))
    return {
        "fleet_alone_s": best["alone"],
        "fleet_shared_s": best["shared"],
        "fleet_layer_texts_saved": saved / asked,
        "fleet_same_bits": bool(np.array_equal(values["alone"], values["shared"])),
    }


if __name__ == "__main__":
    main()
