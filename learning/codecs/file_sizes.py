"""The exact bytes of a safetensors file, by the types and shapes of its tensors alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

_NUMBER_BYTES = {
    "F32": 4,
    "I32": 4,
    "F16": 2,
    "U16": 2,
    "I8": 1,
    "U8": 1,
}  # in the order in which safetensors lays tensors out


def file_sizes(shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, int]:
    """Bytes of each tensor, in the order in which they lie, and of the frame before them: 8 bytes
    of header length, and the JSON header padded to a multiple of 8 (the safetensors format).
    """
    header, sizes, offset = {}, {}, 0
    order = list(_NUMBER_BYTES)
    for name, (dtype, shape) in sorted(
        shapes.items(), key=lambda item: (order.index(item[1][0]), item[0])
    ):
        sizes[name] = math.prod(shape) * _NUMBER_BYTES[dtype]
        end = offset + sizes[name]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"))
    return {**sizes, "frame": 8 + math.ceil(len(text) / 8) * 8}
