"""A side network for next-token tasks that is solved, not stepped: from a token's sampled states to
a move of its last state.

For backbone b a record is x (its sampled states side by side) and g, what the prediction
difference tells of the last state h (`learning.next_token.difference`). With x standardised by b's
own mean and deviation, one ridge regression of g on x is shared by all backbones of a width,

    W = (sum_b X_b'X_b + k n I)^-1 sum_b X_b'(G_b - mean g_b),

and the device of b reads h + s (H_b + c I)^-1 (W'x + mean g_b): Newton's step along the mean
curvature H_b of the loss at its places. All of it follows from sums over records, so that no order
of arrival changes it. k, c and s are chosen by what the move does to records left out. That needs
no token: log p of the token y changes by (g + E'p)'d - log Z(h + d) + log Z(h), whichever y was.

One more pass of the devices gives g at h + move, and another move beside it: boosting, of which
each round is one solution.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from learning.backbones.vocabulary_head import VocabularyHead
from learning.next_token.difference import AT_ONCE, curvature, read

PENALTIES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""k, a record, of x whose numbers have a mean square of 1."""
DAMPINGS = (0.3, 1.0, 3.0, 10.0)
"""c, in mean curvatures."""
STEPS = (0.125, 0.25, 0.5, 1.0, 2.0)
_GRIDS, _START = (PENALTIES, DAMPINGS, STEPS), (30.0, 1.0, 0.5)
LEFT_OUT = 10  # every so manieth block of records is to choose by
LEFT_BLOCK = 50  # records side by side are of the same texts, and would tell of one another
MOST_LEFT_OUT = 400  # of a backbone
MOST_CURVED = 2_000  # places that a curvature is the mean of


@dataclass(frozen=True)
class Move:
    """One round's move of a backbone's last states: x -> (x - mean) / scale @ weights + bias."""

    mean: Tensor
    scale: Tensor
    weights: Tensor
    bias: Tensor

    def __call__(self, x_MF: Tensor) -> Tensor:
        """[M, F] to [M, D]."""
        return (x_MF - self.mean) / self.scale @ self.weights + self.bias


@dataclass(frozen=True)
class Chosen:
    """What a round was solved with, and what it is worth on the records left out: nats a token."""

    penalty: float
    damping: float
    step: float
    gained: float


@dataclass
class NextTokenSide:
    """Moves of every backbone, a list of rounds each; empty before the first."""

    moves: dict[str, list[Move]] = field(default_factory=dict)
    chosen: list[Chosen] = field(default_factory=list)

    def moved(self, backbone: str, x_MF: Tensor, last_MD: Tensor) -> Tensor:
        """Last states [M, D] as the head is to read them."""
        for move in self.moves.get(backbone, ()):
            last_MD = last_MD + move(x_MF)
        return last_MD

    def to(self, device: torch.device) -> NextTokenSide:
        """The same where a model lies."""
        if all(move.weights.device == device for moves in self.moves.values() for move in moves):
            return self
        return self.of({name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """All numbers, by name."""
        return {
            f"{backbone}/{number}/{name}": value
            for backbone, moves in self.moves.items()
            for number, move in enumerate(moves)
            for name, value in vars(move).items()
        }

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> NextTokenSide:
        """From what `tensors` gave."""
        made = cls()
        for name in tensors:
            backbone, number, part = name.rsplit("/", 2)
            if part == "mean":
                parts = {f.name: tensors[f"{backbone}/{number}/{f.name}"] for f in _FIELDS}
                made.moves.setdefault(backbone, []).append(Move(**parts))
        return made


_FIELDS = dataclasses.fields(Move)


@dataclass(frozen=True)
class Records:
    """What a server has of a backbone: x [M, F], last states [M, D], and g [M, D] of this round."""

    x: Tensor
    last: Tensor
    g: Tensor


def solve(
    side: NextTokenSide, records: Mapping[str, Records], heads: Mapping[str, VocabularyHead]
) -> NextTokenSide:
    """Another round on top of a side network: solved for these records, of which every tenth is
    left out to choose by. A round that helps nobody is none.
    """
    parts = {name: _Part(one, heads[name], side, name) for name, one in sorted(records.items())}
    by_width: dict[tuple[int, int], list[_Part]] = {}
    for part in parts.values():
        by_width.setdefault((part.x.shape[1], part.g.shape[1]), []).append(part)
    made = NextTokenSide({name: list(moves) for name, moves in side.moves.items()}, [*side.chosen])
    for alike in by_width.values():
        gram = torch.stack([part.gram for part in alike]).sum(dim=0)
        moment = torch.stack([part.moment for part in alike]).sum(dim=0)
        search = _Search(alike, gram, moment)
        best = search.best()
        if best.gained <= 0:
            continue
        made.chosen.append(best)
        for part in alike:
            move = part.move(search.weights(best.penalty), best.damping, best.step)
            made.moves.setdefault(part.name, []).append(move)
    return made


class _Search:
    """For penalty, damping and step: one after another along its grid, while that helps."""

    def __init__(self, parts: Sequence[_Part], gram_FF: Tensor, moment_FD: Tensor) -> None:
        self.parts, self.gram_FF, self.moment_FD = parts, gram_FF, moment_FD
        self.n = sum(part.n for part in parts)
        self.left = sum(len(part.left_g) for part in parts)
        self._weights: dict[float, Tensor] = {}
        self._gained: dict[tuple[int, ...], float] = {}

    def weights(self, penalty: float) -> Tensor:
        """W of a penalty."""
        if penalty not in self._weights:
            damped_FF = self.gram_FF + penalty * self.n * _eye(len(self.gram_FF))
            self._weights[penalty] = torch.linalg.solve(damped_FF, self.moment_FD)
        return self._weights[penalty]

    def best(self) -> Chosen:
        """What no neighbour on the grid betters."""
        at = tuple(grid.index(start) for grid, start in zip(_GRIDS, _START, strict=True))
        while True:
            near = [
                (*at[:axis], at[axis] + by, *at[axis + 1 :])
                for axis, by in itertools.product(range(len(at)), (-1, 1))
                if 0 <= at[axis] + by < len(_GRIDS[axis])
            ]
            best = max([at, *near], key=self.gained)
            if best == at:
                penalty, damping, step = (grid[i] for grid, i in zip(_GRIDS, at, strict=True))
                return Chosen(penalty, damping, step, self.gained(at))
            at = best

    def gained(self, at: tuple[int, ...]) -> float:
        """By how many nats a token, of the records left out, what is said gets likelier."""
        if at not in self._gained:
            penalty, damping, step = (grid[i] for grid, i in zip(_GRIDS, at, strict=True))
            weights = self.weights(penalty)
            each = (p.gained(p.move(weights, damping, step)(p.left_x)) for p in self.parts)
            self._gained[at] = math.fsum(each) / max(1, self.left)
        return self._gained[at]


class _Part:
    """A backbone's records, standardised and summed up; what is left out apart."""

    def __init__(
        self, records: Records, head: VocabularyHead, side: NextTokenSide, name: str
    ) -> None:
        self.name, self.head = name, head
        blocks = torch.arange(len(records.x)) // LEFT_BLOCK
        is_left = blocks % LEFT_OUT == LEFT_OUT // 2
        if not is_left.any():  # of so few texts
            is_left = torch.arange(len(records.x)) % LEFT_OUT == 0
        x, self.g = records.x[~is_left].float(), records.g[~is_left].float()
        self.mean = x.mean(dim=0)
        self.scale = x.std(dim=0, correction=0).clamp_min(1e-3)
        self.x, self.n = (x - self.mean) / self.scale, len(x)
        self.mean_g = self.g.mean(dim=0)
        self.gram = (self.x.T @ self.x).double()
        self.moment = (self.x.T @ (self.g - self.mean_g)).double()
        self.left_x = records.x[is_left][:MOST_LEFT_OUT].float()
        self.left_g = records.g[is_left][:MOST_LEFT_OUT].float()
        last = records.last.float()
        self.left_h = side.moved(name, self.left_x, last[is_left][:MOST_LEFT_OUT])
        some = torch.linspace(0, self.n - 1, min(self.n, MOST_CURVED)).long()
        at = side.moved(name, records.x[~is_left][some].float(), last[~is_left][some])
        self.curvature = curvature(head, at)
        self._newton: dict[float, Tensor] = {}
        self.left_z, self.left_mean = _partition(head, self.left_h)

    def move(self, weights_FD: Tensor, damping: float, step: float) -> Move:
        """What is solved, as a move of this backbone's last states, in the half precision that it
        is sent in.
        """
        newton = self.newton(damping)
        turned = step * weights_FD @ newton
        bias = step * self.mean_g.double() @ newton
        return Move(*(part.half().float() for part in (self.mean, self.scale, turned, bias)))

    def newton(self, damping: float) -> Tensor:
        """(H + c I)^-1."""
        if damping not in self._newton:
            level = damping * self.curvature.diagonal().mean()
            damped = self.curvature + level * _eye(len(self.curvature))
            self._newton[damping] = torch.linalg.inv(damped)
        return self._newton[damping]

    def gained(self, move_MD: Tensor) -> float:
        """By how many nats, in all, what is said after the records left out gets likelier."""
        z, _ = _partition(self.head, self.left_h + move_MD, means=False)
        along = ((self.left_g + self.left_mean).double() * move_MD.double()).sum()
        return float(along - (z - self.left_z).sum())


def _partition(head: VocabularyHead, last_MD: Tensor, means: bool = True) -> tuple[Tensor, Tensor]:
    """log Z of each place's logits, float64 [M], and E'p [M, D]."""
    logs, expected = [], []
    with torch.inference_mode():
        for start in range(0, len(last_MD), AT_ONCE):
            logits = read(head, last_MD[start : start + AT_ONCE])
            logs.append(logits.logsumexp(dim=1).cpu().double())
            if means:
                expected.append((logits.softmax(dim=1) @ head.weight.float()).cpu())
    return torch.cat(logs), torch.cat(expected) if expected else last_MD[:0]


def _eye(n: int) -> Tensor:
    return torch.eye(n, dtype=torch.float64)
