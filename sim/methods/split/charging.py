"""What split learning costs: counted parts on devices and server, the vocabulary where responses
are learned, and the exact bytes of what crosses between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from learning.backbones.language_head import output_embedding
from learning.codecs.chain import Chain
from learning.codecs.numbers import nbytes
from learning.cost.costs import Cost
from learning.cost.count_split import PartArchitecture
from sim.kernel.device import Device
from sim.kernel.ledger import Item
from sim.kernel.world import World
from sim.methods.responses import vocabularies, with_words


class Charging:
    """Charges the parts of each backbone, numbered from the tokens to the loss, of which `own` are
    on the device. The last has the head, or for responses the vocabulary, which is trained or not.
    """

    def __init__(
        self,
        world: World,
        parts: Mapping[str, tuple[PartArchitecture, ...]],
        own: tuple[int, ...],
        optimiser: str,
        chain: Chain,
        trains_words: bool,
    ) -> None:
        self.world, self.own, self.optimiser = world, own, optimiser
        self.chain = chain  # by which vectors and their gradients are sent
        self.says, self.trains_words = vocabularies(world), trains_words
        self.parts = dict(parts)
        for name in self.says:  # what is tied lies where the embeddings are, and is counted there
            numbers = output_embedding(world.costing.charged[name]).numbers
            *below, last = parts[name]
            self.parts[name] = (*below, last.with_numbers(numbers, trains_words))

    def forward(self, device: Device, samples: np.ndarray, part: int) -> Cost:
        """One part's forward pass over a batch of the device's texts, padded to the longest."""
        return self._charged(
            device, part, self.parts[device.backbone][part].forward(*self._shape(device, samples))
        )

    def backward(self, device: Device, samples: np.ndarray, part: int) -> Cost:
        """One part's backward pass over the batch and its optimiser's step; of the last, where
        responses are learned, with all that saying their tokens takes.
        """
        shape, parts = self._shape(device, samples), self.parts[device.backbone]
        cost = parts[part].backward(*shape, self.optimiser)
        if self.says and (last := len(parts) - 1) in {part, *self.own}:
            words, gradient = self._words(device, samples)
            if part == last:
                cost = with_words(cost, parts[part].saved_bytes(*shape), words)
            elif part in self.own:  # which holds the vocabulary's gradient until it has its own
                cost = replace(cost, peak_bytes=cost.peak_bytes + gradient)
        return self._charged(device, part, cost)

    def _words(self, device: Device, samples: np.ndarray) -> tuple[Cost, int]:
        """What it takes to say a batch's tokens, learn by them and find the gradient of the states
        that were read; and the bytes of the vocabulary's own gradient, which is in memory with two
        of the logits' size.
        """
        said = int(self.world.response_lengths(device, samples).sum())
        of = self.says[device.backbone]
        cost = of.training(said, self.trains_words)
        gradient = 4 * of.width * of.words * self.trains_words
        peak = max(cost.peak_bytes, 2 * of.forward(said).peak_bytes + gradient)
        return replace(cost, peak_bytes=peak), gradient

    def states(self, device: Device, samples: np.ndarray, part: int, layer: int) -> Item:
        """The vectors of all real tokens after a part, which ends with this layer, as sent."""
        width = self.parts[device.backbone][part].width
        sent = nbytes(self.chain, (self._vectors(device, samples), width))
        return Item("activation", sent, (layer,), "each")

    def with_encoding(self, cost: Cost, device: Device, samples: np.ndarray, part: int) -> Cost:
        """The same cost with what a device computes to send the vectors of a part, or their
        gradients.
        """
        width = self.parts[device.backbone][part].width
        flop = self._vectors(device, samples) * self.chain.encoding_flop(width)
        return replace(cost, flop=cost.flop + flop)

    def _vectors(self, device: Device, samples: np.ndarray) -> int:
        batch, tokens = self._shape(device, samples)
        fixed = self.world.costing.fixed_tokens is not None
        return batch * tokens if fixed else int(self.world.lengths(device, samples).sum())

    def device_bytes(self, device: Device) -> int:
        """What a round carries each way: the trained numbers of the device's parts."""
        return sum(self.parts[device.backbone][part].trainable_bytes for part in self.own)

    def server_bytes(self, device: Device) -> int:
        """The trained numbers that the server holds for one such device."""
        parts = self.parts[device.backbone]
        return sum(part.trainable_bytes for part in parts) - self.device_bytes(device)

    def _shape(self, device: Device, samples: np.ndarray) -> tuple[int, int]:
        longest = int(self.world.lengths(device, samples).max())
        return len(samples), self.world.costing.fixed_tokens or longest

    def _charged(self, device: Device, part: int, cost: Cost) -> Cost:
        if part not in self.own:
            return cost
        # a device adds its whole backbone's weights to what work needs; here it holds its parts
        # alone
        parts = self.parts[device.backbone]
        kept = sum(parts[own].kept_bytes(self.optimiser) for own in self.own)
        return replace(
            cost, peak_bytes=cost.peak_bytes + kept - self.world.costing.weight_bytes(device.member)
        )
