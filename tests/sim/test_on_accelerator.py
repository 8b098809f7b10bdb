"""`--host` and `--precision`: where a run's learning was computed, and whether it comes to the same
as on the CPU. Where there is no accelerator, what needs one is skipped.
"""

import runpy
from pathlib import Path

import pytest
import torch

import mobifleet as api
from learning.backbones import assets
from learning.host_device import CPU, HostDevice, HostDeviceError, compute_on
from sim.kernel.host import Host, HostError
from sim.results.run_directory import read_manifest

every_method = runpy.run_path(str(Path(__file__).with_name("every_method.py")))
KINDS, CALM, small = (every_method[name] for name in ("KINDS", "CALM", "small"))
responses = runpy.run_path(str(Path(__file__).with_name("responses.py")))
ACCELERATORS = ["cuda", "mps"]


@pytest.fixture(autouse=True)
def on_the_cpu_again():
    yield
    compute_on(CPU)


@pytest.fixture
def run(tmp_path):
    def run(scenario, name, **how):
        try:
            compute_on(HostDevice(how.get("host", "cpu")))
            return api.run(scenario, out=tmp_path / name, figures=False, quiet=True, **how)
        except (HostDeviceError, assets.AssetMissing) as error:
            pytest.skip(str(error))

    return run


@pytest.mark.fetched
@pytest.mark.thorough
@pytest.mark.parametrize("host", ACCELERATORS)
def test_the_quickstart_comes_within_a_point_of_the_cpu_and_twice_to_the_same(run, host):
    there = run("quickstart", "there", host=host)
    again = run("quickstart", "again", host=host)
    here = run("quickstart", "here")
    assert abs(there.summary["final"] - here.summary["final"]) <= 0.01
    assert there.summary["digest"] == again.summary["digest"]
    assert read_manifest(there.path)["host"].startswith(host)


@pytest.mark.parametrize("host", ACCELERATORS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_method_runs_there_and_takes_the_same_virtual_time(run, kind, host, scenario_file):
    file = scenario_file(**CALM, method=small(kind))
    there = run(file, "there", host=host)
    here = run(file, "here")
    for what in ("ended", "virtual_time_s", "totals", "outcomes"):
        assert there.summary[what] == here.summary[what], what


@pytest.mark.parametrize("host", ACCELERATORS)
@pytest.mark.parametrize("kind", responses["METHODS"])
def test_every_method_that_says_responses_runs_there(run, kind, host, scenario_file, tmp_path):
    responses["write_talk"](tmp_path)
    file = scenario_file(**responses["WORLD"], method=responses["METHODS"][kind])
    there = run(file, "there", host=host)
    here = run(file, "here")
    for what in ("ended", "virtual_time_s", "totals", "outcomes"):
        assert there.summary[what] == here.summary[what], what
    assert there.summary["final"] == pytest.approx(here.summary["final"], rel=0.02)


@pytest.mark.parametrize("kind", ["fedavg-lora", "fed-mobillm-lm"])
def test_responses_are_read_in_no_memory_but_a_models_own(
    kind, run, scenario_file, tmp_path, another_memory
):
    responses["write_talk"](tmp_path)
    file = scenario_file(**responses["WORLD"], method=responses["METHODS"][kind])
    assert run(file, "run").summary["ended"] != "diverged" and another_memory


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("kind", ["fed-mobillm-lm", "fedavg-lora", "splitfed-v1"])
def test_responses_are_learned_in_bfloat16(kind, is_tied, run, scenario_file, tmp_path):
    responses["write_talk"](tmp_path)
    world = responses["WORLD"] if is_tied else responses["with_untied"]()
    file = scenario_file(**world, method=responses["METHODS"][kind])
    rounded = run(file, "rounded", precision="bfloat16")
    plain = run(file, "plain")
    assert rounded.summary["totals"] == plain.summary["totals"]
    assert rounded.summary["final"] == pytest.approx(plain.summary["final"], rel=0.05)


@pytest.fixture
def another_memory(monkeypatch):
    """As if models lay in another memory than the CPU's: whoever reads one's numbers there, without
    copying them over, is refused, as by torch.
    """
    placed: dict[int, torch.UntypedStorage] = {}  # by its address, which is nobody else's then

    def place(self, model):
        for tensor in (*model.parameters(), *model.buffers()):
            storage = tensor.untyped_storage()
            placed[storage.data_ptr()] = storage
        return model

    def numpy(self, *how, plain=torch.Tensor.numpy, **more):
        if self.numel() and self.untyped_storage().data_ptr() in placed:
            raise TypeError("can't convert a tensor of another memory to numpy")
        return plain(self, *how, **more)

    monkeypatch.setattr(HostDevice, "place", place)
    monkeypatch.setattr(torch.Tensor, "numpy", numpy)
    monkeypatch.setattr(torch.Tensor, "cpu", torch.Tensor.clone)
    monkeypatch.setattr("learning.host_device._LEAST_SIDE_NETWORK", 0)
    return placed


@pytest.mark.parametrize("kind", KINDS)
def test_no_method_reads_a_model_in_the_memory_of_another_device(
    kind, run, scenario_file, another_memory
):
    done = run(scenario_file(**CALM, method=small(kind)), "run")
    assert done.summary["ended"] != "diverged" and another_memory


def test_the_manifest_names_where_a_run_was_computed(run, scenario_file):
    done = run(scenario_file(), "run", precision="bfloat16")
    manifest = read_manifest(done.path)
    assert manifest["host"] == "cpu, bfloat16"
    assert manifest["arithmetic"][0].endswith("on cpu, bfloat16")
    plain = read_manifest(run(scenario_file(), "plain").path)
    assert plain["host"] == "cpu, float32" and ", on " not in plain["arithmetic"][0]


def test_ray_computes_on_cpus_alone(monkeypatch):
    monkeypatch.setattr("sim.kernel.host.host_device", lambda: HostDevice("cuda"))
    with pytest.raises(HostError, match="--host cpu"):
        Host("ray")


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is there")
@pytest.mark.parametrize("verb", ["run", "compare"])
def test_a_device_that_is_not_there_is_one_message(verb, mobifleet, scenario_file):
    compare = {"methods": {"ours": {"kind": "fed-mobillm"}}}
    found = mobifleet(verb, scenario_file(compare=compare), "--host", "cuda")
    assert found.code == 2
    assert "--host cuda: torch" in found.err and "--host cpu" in found.err
    assert len(found.err.splitlines()) == 1


def test_an_unknown_device_is_refused_in_a_dry_run_too(mobifleet):
    found = mobifleet("run", "quickstart", "--dry", "--host", "tpu")
    assert (found.code, found.err) == (2, "--host is one of cpu, cuda, mps (got 'tpu')\n")
