"""The order in which a device's texts come to it: from one mix of groups (labels, or domains) to
another, over time.

Half of the groups are "late". A text gets a place x in [0, 1] and texts come in the order of their
places; a late group's places have the density 1 - s + 2 s x, an early one's 1 - s + 2 s (1 - x), at
strength s. So with equal groups the late share rises from (1 - s) / 2 to (1 + s) / 2 in a line, and
the texts as a whole are the same as without drift.
"""

from typing import Literal

import numpy as np


def late_groups(groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Whether each text's group is a late one, bool [n]: a random half of the groups is (of an odd
    number the smaller half).

    groups: [n], labels or domains of any type.
    """
    names, group_of = np.unique(groups, return_inverse=True)
    late = np.zeros(len(names), dtype=bool)
    late[rng.permutation(len(names))[: len(names) // 2]] = True
    return late[group_of]


def order(
    is_late: np.ndarray,
    rng: np.random.Generator,
    strength: float = 1.0,
    kind: Literal["gradual", "sudden"] = "gradual",
) -> np.ndarray:
    """A random order of n texts, int [n], in which early groups give way to late ones.

    is_late: bool [n]. gradual: by the densities above. sudden: a share `strength` of each group
    lies in its own half of the time, the rest anywhere. Strength 0 is any order, 1 all of the
    drift. Raises ValueError for another strength.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength of the drift is {strength}, allowed: from 0 to 1")
    u, v = rng.random((2, len(is_late)))
    # of two uniforms the larger one has the density 2 x; half of one has 2 on the first half
    drifting = np.sqrt(v) if kind == "gradual" else (1 + v) / 2
    place = np.where(u < strength, np.where(is_late, drifting, 1 - drifting), v)
    return np.argsort(place, kind="stable")
