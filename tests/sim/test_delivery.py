"""What a device must still download to predict: said by every method, counted once in each cost."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from sim.compare.costs import costs_at
from sim.results.run import open_run

every_method = runpy.run_path(str(Path(__file__).with_name("every_method.py")))
KINDS, small, CALM = (every_method[name] for name in ("KINDS", "small", "CALM"))

SHIPPED = {"fed-mobillm", "pae-mobillm", "mobillm", "single-side-network"}
BROADCAST = {"spry", "flexlora", "fedasync", "fedbuff", "splitfed-v1", "splitfed-v2", "fedbert"}
NOTHING = {"centralised", "upload-raw-text", "local-lora", "local-lst"}


def downloads(sim, device):
    """Bytes of each download of a device, and when it began."""
    rows = sim.recorder.spans().to_pylist()
    mine = [row for row in rows if row["actor"] == device.id and row["kind"] == "download"]
    return [(row["nbytes"], row["start_s"]) for row in mine]


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_method_says_is_what_its_own_broadcasts_and_deliveries_carry(kind, simulate):
    sim = simulate(dry=True, method=small(kind), **CALM)
    for device in sim.devices:
        said, rows = sim.method.delivery_bytes(device), downloads(sim, device)
        if kind in NOTHING:
            assert said == 0 and not rows
        elif kind in SHIPPED:
            [(nbytes, start_s)] = rows
            assert said == nbytes > 0 and start_s >= sim.trained_at_s
        elif not rows and kind == "spry":  # never asked
            assert said > 0
        elif kind in BROADCAST or kind.startswith("fedavg-"):
            assert said >= max(nbytes for nbytes, _ in rows) > 0  # split: the server's part, too
            if kind not in ("splitfed-v1", "splitfed-v2", "fedbert"):
                assert said == rows[0][0]
            assert all(start_s < sim.trained_at_s for _, start_s in rows)
        elif kind == "fwdllm":  # its downloads carry chosen seeds beside the model
            assert 0 < said < rows[0][0]
        elif kind == "fedmezo":  # whoever has taken part catches up by probes
            assert 0 <= said < rows[0][0] and said % 12 == 0
        else:
            raise AssertionError(f"say here what {kind} delivers")


def test_split_learning_delivers_what_both_sides_train(simulate):
    for kind in ("splitfed-v1", "fedbert"):
        sim = simulate(dry=True, method=small(kind), **CALM)
        parts = sim.method.charging.parts[sim.devices[0].backbone]
        assert sim.method.delivery_bytes(sim.devices[0]) == sum(p.trainable_bytes for p in parts)


def test_delivery_is_counted_once_in_every_cost_and_never_before_or_after(
    tmp_path, mobifleet, scenario_file
):
    out = tmp_path / "run"
    done = mobifleet("run", scenario_file(), "--dry", "--out", out)
    assert done.code == 0, done.err
    run = open_run(out)
    devices = run.devices()
    shipped = devices["delivery_bytes"].to_numpy()
    # this method sends nothing down but what it ships in the end
    np.testing.assert_array_equal(shipped, devices["downlink_bytes"].to_numpy())
    assert np.all(shipped > 0)
    sent = devices["uplink_bytes"].to_numpy().mean()
    end_s = run.summary["virtual_time_s"]
    assert end_s > run.summary["trained_at_s"]
    found = costs_at(run, np.array([0.0, end_s]))
    np.testing.assert_allclose(found["uplink_bytes"], [0, sent])
    np.testing.assert_allclose(found["downlink_bytes"], [0, 0])
    np.testing.assert_allclose(found["training_bytes"], [0, sent])
    np.testing.assert_allclose(found["delivery_bytes"], [shipped.mean()] * 2)
    np.testing.assert_allclose(
        found["communication_bytes"], [shipped.mean(), sent + shipped.mean()]
    )
    assert run.summary["per_device"]["delivery_bytes"]["mean"] == shipped.mean()
