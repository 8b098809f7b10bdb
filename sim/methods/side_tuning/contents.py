"""What the payloads of side-tuning hold, as the ledger has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sim.kernel.ledger import Contents, Item


def uploaded(
    sizes: Mapping[str, int], layers: Sequence[int], token: str, targets: Sequence[str]
) -> Contents:
    """Of an upload whose encoding has tensors of these sizes: activations of these layers at this
    token, and targets of these kinds side by side, of equal width.
    """
    activations = sizes["values"] + sizes.get("scale", 0) + sizes.get("places", 0)
    return Contents(
        Item("activation", activations, tuple(layers), token),
        *(Item(kind, sizes["targets"] // len(targets)) for kind in targets),
        Item("length", sizes.get("lengths", 0)),
        Item("sample number", sizes["samples"]),
        Item("frame", sizes["frame"]),
    )
