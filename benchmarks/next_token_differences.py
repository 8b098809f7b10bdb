"""What a server can make of a decoder's prediction differences, by how much of them is sent.

    python benchmarks/next_token_differences.py --out benchmarks/results/next_token_differences.json

Film dialogues go once through a frozen decoder; what devices send is computed from its states at
every token of every response, and one round of moves is solved from it: of the gradient at the
last state, of the whole difference, of its largest entries, of a random projection of it. Beside
them what tokens at the server would give (the upper bound): a map of the same states, or a network
of one hidden layer, trained by cross-entropy, with the epoch chosen on texts left out. Perplexity
is that of other dialogues' responses. Last, how many tokens an honest-but-curious server that has
the head names from what is sent.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.backbones import catalogue
from learning.backbones.backbone import Backbone
from learning.backbones.responses import responses
from learning.backbones.vocabulary_head import VocabularyHead
from learning.data import texts
from learning.next_token.choices import form_of
from learning.next_token.difference import gradient_of, losses, told
from learning.next_token.side import DAMPINGS, PENALTIES, STEPS, NextTokenSide, Records, solve
from learning.next_token.states import token_states

SMOLLM2 = "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n{response}<|im_end|>"
FORMS = ("gradient", "whole", "top-1", "top-64")
RATES = (1e-4, 3e-4, 1e-3)
BATCH = 64


@dataclass(frozen=True)
class Read:
    """States of texts: x [M, F], last states [M, D], tokens that follow [M]."""

    x: Tensor
    last: Tensor
    said: Tensor

    def part(self, places: Tensor) -> Read:
        """Those at some places."""
        return Read(self.x[places], self.last[places], self.said[places])


def read(backbone: str, train: int, test: int, taps: Sequence[int] | None = None) -> tuple:
    """Two draws of film dialogues through a decoder: its head, and what is read of each."""
    spec, found = catalogue.find(backbone), texts.load("film-dialogues", "language-modelling")
    order = np.random.default_rng(0).permutation(len(found))[: train + test]
    model = Backbone(spec)
    depth = model.layers
    layers = tuple(taps or (0, depth // 2, depth))
    assert found.responses is not None
    parts = []
    for chosen in (order[:train], order[train:]):
        said = [found.responses[i] for i in chosen]
        template = SMOLLM2 if backbone.startswith("smollm2") else "{prompt} : {response}"
        tokens = responses(spec, template, [found.texts[i] for i in chosen], said, 64)
        states = token_states(model, tokens, layers)
        x = torch.from_numpy(states.values).flatten(1).float()
        parts.append(Read(x, torch.from_numpy(states.last), torch.from_numpy(states.said)))
    return VocabularyHead(spec, model.model).eval(), *parts


def perplexity(head: VocabularyHead, last_MD: Tensor, said_M: Tensor) -> float:
    """Of these tokens after these last states."""
    return math.exp(float(losses(head, last_MD, said_M)[0].mean()))


# --- without a token


def solved(head: VocabularyHead, train: Read, test: Read, difference: str) -> dict:
    """One round of moves from what this form says."""
    form = form_of(difference)
    numbers, words = told(head, train.last, train.said, form)
    named = _named(head, train, numbers, words, form.kind)
    g = numbers if form.kind == "gradient" else gradient_of(head, train.last, numbers, words)
    side = solve(NextTokenSide(), {"b": Records(train.x, train.last, g)}, {"b": head})
    moved = side.moved("b", test.x, test.last)
    bytes_ = 2 * numbers.shape[1] + (0 if words is None else 2 * words.shape[1])
    return {
        "bytes_a_token": bytes_,
        "perplexity": perplexity(head, moved, test.said),
        "tokens_named": named,
        "chosen": vars(side.chosen[0]) if side.chosen else None,
    }


def _named(
    head: VocabularyHead, train: Read, numbers: Tensor, words: Tensor | None, kind: str
) -> float:
    """The share of tokens that the server names which has the head and the last state."""
    some = slice(0, 500)
    if kind == "top":
        assert words is not None
        best = words[some].gather(1, numbers[some].argmax(dim=1, keepdim=True))[:, 0]
    elif kind == "whole":
        best = numbers[some].argmax(dim=1)
    else:
        best = _nearest(head, train.part(torch.arange(len(train.said))[some]), numbers[some])
    return float((best == train.said[some]).double().mean())


def _nearest(head: VocabularyHead, at: Read, g_MD: Tensor) -> Tensor:
    """The words whose embeddings are nearest to g + E'p."""
    with torch.inference_mode():
        mean_MD = head(at.last).float().softmax(dim=1) @ head.weight
        wanted = g_MD + mean_MD
        return (2 * wanted @ head.weight.T - head.weight.square().sum(dim=1)).argmax(dim=1)


def by_norm(head: VocabularyHead, train: Read, count: int = 300) -> float:
    """Of a gradient turned by a secret rotation: the share of tokens that its length alone names,
    for a server that knows the last state.
    """
    at = train.part(torch.arange(min(count, len(train.said))))
    g_MD, _ = told(head, at.last, at.said, form_of("gradient"))
    with torch.inference_mode():
        mean_MD = head(at.last).float().softmax(dim=1) @ head.weight
        squares_V = head.weight.square().sum(dim=1)
        each_MV = squares_V - 2 * mean_MD @ head.weight.T + mean_MD.square().sum(dim=1)[:, None]
        off_MV = (each_MV.clamp_min(0).sqrt() - g_MD.norm(dim=1).half().float()[:, None]).abs()
        return float((off_MV.argmin(dim=1) == at.said).double().mean())


def projected(head: VocabularyHead, train: Read, test: Read, numbers: int) -> dict:
    """One round in the span of a random projection R [V, K] of the difference: logits E h + R z,
    with Newton's step along the mean curvature R'(diag p - p p')R.
    """
    draw = torch.Generator().manual_seed(0)
    random_VK = torch.randn(head.vocabulary, numbers, generator=draw) / math.sqrt(numbers)
    fit, left = _left_out(train)
    y, curve = _spanned(head, fit, random_VK)
    mean, scale = fit.x.mean(dim=0), fit.x.std(dim=0, correction=0).clamp_min(1e-3)
    z = (fit.x - mean) / scale
    gram, moment = (z.T @ z).double(), (z.T @ (y - y.mean(dim=0))).double()
    eye_F, eye_K = torch.eye(len(gram), dtype=torch.float64), torch.eye(numbers).double()

    def moved(at: Read, penalty: float, damping: float, step: float) -> Tensor:
        weights = torch.linalg.solve(gram + penalty * len(z) * eye_F, moment)
        newton = torch.linalg.inv(curve + damping * curve.diagonal().mean() * eye_K)
        say = ((at.x - mean) / scale).double() @ weights + y.mean(dim=0).double()
        return (step * say @ newton).float()

    def loss(at: Read, *chosen: float) -> float:
        z_MK, total = moved(at, *chosen), 0.0
        with torch.inference_mode():
            for place in _pieces(len(at.said)):
                logits = head(at.last[place]) + z_MK[place] @ random_VK.T
                total += float(F.cross_entropy(logits, at.said[place], reduction="sum"))
        return total / len(at.said)

    grid = list(itertools.product(PENALTIES[1::2], DAMPINGS[1::2], STEPS[1::2]))
    best = min(grid, key=lambda chosen: loss(left, *chosen))
    return {"bytes_a_token": 2 * numbers, "perplexity": math.exp(loss(test, *best)), "chosen": best}


def _spanned(head: VocabularyHead, at: Read, random_VK: Tensor) -> tuple[Tensor, Tensor]:
    """R'(one_hot - p) of each place [M, K], and the mean of R'(diag p - p p')R [K, K]."""
    found, mass_V = [], torch.zeros(head.vocabulary)
    moment = torch.zeros(random_VK.shape[1], random_VK.shape[1], dtype=torch.float64)
    with torch.inference_mode():
        for place in _pieces(len(at.said)):
            p_BV = head(at.last[place]).float().softmax(dim=1)
            mean_BK = p_BV @ random_VK
            mass_V += p_BV.sum(dim=0)
            moment += (mean_BK.T @ mean_BK).double()
            found.append(random_VK[at.said[place]] - mean_BK)
        spread = ((random_VK.T * mass_V) @ random_VK).double()
    return torch.cat(found), (spread - moment) / len(at.said)


# --- with tokens at the server


def by_cross_entropy(
    head: VocabularyHead, train: Read, test: Read, hidden: int, epochs: int
) -> dict:
    """A map of the standardised states (0 hidden) or a network of one hidden layer that moves the
    last state, trained on the tokens themselves; rate and epoch by texts left out.
    """
    fit, left = _left_out(train)
    mean, scale = fit.x.mean(dim=0), fit.x.std(dim=0, correction=0).clamp_min(1e-3)
    best: tuple[float, float, int, float] | None = None
    for rate in RATES:
        net = _network(fit.x.shape[1], head.in_features, hidden)
        optimiser = torch.optim.AdamW(net.parameters(), rate, weight_decay=0.1)
        for epoch in range(1, epochs + 1):
            order = torch.randperm(len(fit.said), generator=torch.Generator().manual_seed(epoch))
            for chosen in order.split(BATCH):
                at = fit.part(chosen)
                moved = at.last + net((at.x - mean) / scale)
                loss = F.cross_entropy(head(moved).float(), at.said)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            of_left, of_test = (_of_net(head, net, mean, scale, at) for at in (left, test))
            if best is None or of_left < best[0]:
                best = (of_left, rate, epoch, of_test)
            elif of_left > 1.1 * best[0]:
                break
    assert best is not None
    return {"perplexity": best[3], "chosen": {"rate": best[1], "epoch": best[2]}}


def _network(inputs: int, width: int, hidden: int) -> nn.Module:
    torch.manual_seed(0)
    if not hidden:
        net: nn.Module = nn.Linear(inputs, width)
        last = net
    else:
        last = nn.Linear(hidden, width)
        net = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), last)
    nn.init.zeros_(last.weight)  # type: ignore[arg-type]
    nn.init.zeros_(last.bias)  # type: ignore[arg-type]
    return net


def _of_net(head: VocabularyHead, net: nn.Module, mean: Tensor, scale: Tensor, at: Read) -> float:
    with torch.inference_mode():
        return perplexity(head, at.last + net((at.x - mean) / scale), at.said)


def _left_out(train: Read) -> tuple[Read, Read]:
    """Nine tenths, and blocks of side-by-side places to choose by."""
    blocks = torch.arange(len(train.said)) // 50
    is_left = blocks % 10 == 5 if len(train.said) > 300 else torch.arange(len(train.said)) % 10 == 0
    return train.part(~is_left), train.part(is_left)


def _pieces(count: int, size: int = 512) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


def main(arguments: Sequence[str] | None = None) -> dict:
    """Measure, print and return the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="smollm2")
    parser.add_argument("--train", type=int, default=600)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--projections", type=int, nargs="*", default=[64, 576, 2304])
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    head, train, test = read(given.backbone, given.train, given.test)
    asked: dict[str, Callable[[], dict]] = {
        "untrained": lambda: {"perplexity": perplexity(head, test.last, test.said)}
    }
    for form in FORMS:
        asked[form] = lambda form=form: solved(head, train, test, form)
    for numbers in given.projections:
        asked[f"random-{numbers}"] = lambda k=numbers: projected(head, train, test, k)
    for hidden in (0, given.hidden):
        kind = f"tokens, hidden layer of {hidden}" if hidden else "tokens, linear map"
        asked[kind] = lambda h=hidden: by_cross_entropy(head, train, test, h, given.epochs)
    asked["secret rotation, named by length"] = lambda: {"tokens_named": by_norm(head, train)}
    figures: dict[str, dict] = {
        "data": {**vars(given), "out": None, "train_tokens": len(train.said)}
    }
    for name, measure in asked.items():
        figures[name] = measure()
        print(name, json.dumps(figures[name]), flush=True)
    if given.out:
        given.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


if __name__ == "__main__":
    main()
