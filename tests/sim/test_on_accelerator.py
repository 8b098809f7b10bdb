"""`--host` and `--precision`: where a run's learning was computed, and whether it comes to the
same.
"""

import pytest
import torch

import mobifleet
from learning.backbones import assets
from learning.host_device import CPU, HostDevice, HostDeviceError, compute_on
from sim.kernel.host import Host, HostError
from sim.results.run_directory import read_manifest

SMALL = {"task.train": 60, "task.test": 40, "fleet.0.count": 3}
METHODS = {
    "fedavg": {"kind": "fedavg-lora", "rounds": 2, "participation": 0.5},
    "fwdllm": {"kind": "fwdllm", "rounds": 1},
    "split": {"kind": "splitfed-v1", "rounds": 1},
}


@pytest.fixture(autouse=True)
def on_the_cpu_again():
    yield
    compute_on(CPU)
    torch.use_deterministic_algorithms(False)


def run(out, **how):
    try:
        return mobifleet.run("quickstart", out=out, figures=False, quiet=True, **how)
    except (HostDeviceError, assets.AssetMissing) as error:
        pytest.skip(str(error))


@pytest.mark.fetched
@pytest.mark.thorough
@pytest.mark.parametrize("host", ["cuda", "mps"])
def test_the_quickstart_comes_within_a_point_of_the_cpu_and_twice_to_the_same(tmp_path, host):
    there = run(tmp_path / "there", host=host)
    again = run(tmp_path / "again", host=host)
    here = run(tmp_path / "here")
    assert abs(there.summary["final"] - here.summary["final"]) <= 0.01
    assert there.summary["digest"] == again.summary["digest"]
    assert read_manifest(there.path)["host"].startswith(host)
    for whole in ("virtual_time_s", "totals"):
        assert there.summary[whole] == here.summary[whole]


def test_the_manifest_names_where_a_run_was_computed(tmp_path, own_backbone_scenario):
    done = mobifleet.run(
        own_backbone_scenario, out=tmp_path / "run", figures=False, precision="bfloat16"
    )
    manifest = read_manifest(done.path)
    assert manifest["host"] == "cpu, bfloat16"
    assert manifest["arithmetic"][0].endswith("on cpu, bfloat16")


def test_ray_computes_on_cpus_alone(monkeypatch):
    monkeypatch.setattr("sim.kernel.host.host_device", lambda: HostDevice("cuda"))
    with pytest.raises(HostError, match="--host cpu"):
        Host("ray")
