"""Every kind of `mobifleet list methods`, and settings that make each a day of a few rounds; for
`runpy.run_path`.
"""

from pathlib import Path
from typing import get_args

import numpy as np

from sim.methods import METHODS
from sim.results.summary import device_table
from sim.simulation import Simulation

KINDS = [  # what learns responses alone has its own tests: test_language_modelling.py
    kind
    for method in METHODS
    for kind in get_args(method.Config.model_fields["kind"].annotation)
    if method.Config.responses != "only"
]
SMALL = {
    "rounds": 3,
    "participation": 1.0,
    "epochs": 2,
    "local_epochs": 1,
    "device_batch": 4,
    "server_batch": 8,
    "replay": 5,
    "answers": 8,
    "concurrency": 1.0,
    "buffer": 2,
    "evaluate_every": 2,
    "local_steps": 2,
    "most_asks": 1,
    "asks": 1,
    "variance_threshold": None,
}


def small(kind: str) -> dict:
    """Few rounds, and (nearly always) everybody takes part."""
    config = next(
        m.Config for m in METHODS if kind in get_args(m.Config.model_fields["kind"].annotation)
    )
    own = (
        {"participation": 0.3} if kind == "spry" else {}
    )  # one device, so that one division of its tensors is counted
    unread = {"buffer"} if kind == "fedasync" else set()
    mine = {
        key: value
        for key, value in SMALL.items()
        if key in config.model_fields and key not in unread
    }
    return {"kind": kind, **mine, **own}


PHONES = [
    {
        "count": 2,
        "device": "phone-2024-flagship",
        "backbone": "random-bert",
        "link": "lte",
        "memory": "4 GiB",
    },
    {
        "count": 2,
        "device": "phone-2021-midrange",
        "backbone": "random-bert",
        "link": "wifi-home",
        "memory": "4 GiB",
    },
]
TASK = {"dataset": {"path": "texts.csv"}, "max_tokens": 16, "train": 40, "test": 12}
CALM = {
    "task": TASK,
    "fleet": PHONES,
    "arrivals": {"kind": "at-once"},
    "cost_as": {"backbone": "minilm-l2", "tokens": 512},
}


def hard(folder: Path, calm: Simulation) -> dict:
    """`CALM` with everything on that can happen to a phone, several times in a day like the calm
    one; writes `harsh.csv`.
    """
    day_s = calm.ended.at_s
    share = (
        0.3 * max(device_table(calm)["energy_j"].to_pylist()) / 70_000 or 1e-6
    )  # of a battery: a part of a day's work
    rng, rows = np.random.default_rng(0), ["device,ready_start_s,ready_end_s"]
    for device in range(4):
        edges = np.cumsum(rng.exponential(np.tile([day_s / 12, day_s / 6], 60)))
        rows += [f"{device},{a},{b}" for a, b in zip(edges[::2], edges[1::2], strict=True)]
    (folder / "harsh.csv").write_text("\n".join(rows))
    conditions = {
        "thermal": True,
        "radio_power_by_rate": True,
        "background_load": {"quiet": f"{day_s / 5} s", "busy": f"{day_s / 5} s"},
        "battery": {"initial": [0.2 - share, 0.2 + share], "resume_at": 0.2 + 2 * share},
        "memory_pressure": {
            "share": [0.1, 0.999],
            "every": f"{day_s / 8} s",
            "restart": f"{day_s / 50} s",
        },
    }
    fresh = {"fresh_data": {"kind": "poisson", "rate": f"{20 / day_s} Hz"}}
    return {
        **CALM,
        **(fresh if getattr(calm.scenario.method, "takes_texts_as_they_come", False) else {}),
        "availability": {"kind": "trace", "path": "harsh.csv", "period": f"{100 * day_s} s"},
        "devices": conditions,
        "dropout": {"times": [None, None, None, f"{day_s / 2} s"]},
        "stop": {"horizon": f"{2 * day_s} s"},
    }
