"""Methods that are not ours: in a file beside the scenario, registered from Python; and SCAFFOLD in
a file of its own against a plain loop.
"""

import runpy
from pathlib import Path

import pytest
import torch

from sim.api import load
from sim.results.run import open_run
from sim.scenario import registry
from sim.scenario.file import ScenarioError
from sim.scenario.registry import MethodError, register
from sim.scenario.schema import Scenario
from sim.simulation import Simulation

EXAMPLES = Path(__file__).parents[2] / "examples" / "methods"
SCAFFOLD = {
    "kind": "scaffold.py:Scaffold",
    "rounds": 3,
    "participation": 1.0,
    "device_batch": 8,
    "rank": 4,
    "evaluate_every": 1,
}
QUIET = """
from sim.methods.side_tuning.fed_mobillm import FedMobiLLM


class Quiet(FedMobiLLM):
    "Fed MobiLLM that sends nothing back."

    class Config(FedMobiLLM.Config):
        kind: str = "x"
        ship_side_network: bool = False
"""


@pytest.fixture
def scaffold_file(tmp_path):
    (tmp_path / "scaffold.py").write_text((EXAMPLES / "scaffold.py").read_text())


def test_code_that_a_scenario_names_runs_only_if_that_is_said(
    mobifleet, scenario_file, scaffold_file
):
    path = scenario_file(method=SCAFFOLD)
    refused = mobifleet("run", path, "--quiet", "--no-figures")
    assert refused.code == 2 and "--allow-code" in refused.err
    line = (
        path.read_text()
        .splitlines()
        .index(next(line for line in path.read_text().splitlines() if "scaffold.py" in line))
    )
    assert f"{path.name}:{line + 1}:" in refused.err
    with pytest.raises(ScenarioError, match="--allow-code"):
        load(path)


def test_a_method_in_a_file_runs_checks_resumes_and_reads_back(
    mobifleet, scenario_file, scaffold_file, tmp_path
):
    path, out = scenario_file(method=SCAFFOLD), tmp_path / "run"
    told = mobifleet("check", path, "--allow-code")
    assert told.code == 0 and "scaffold.py:Scaffold" in told.out
    run = mobifleet("run", path, "--allow-code", "--quiet", "--no-figures", "--out", out)
    assert run.code == 0, run.err
    found = open_run(out)
    assert found.summary["totals"]["updates"] == 3
    assert "scaffold.py" in found.manifest["inputs"]  # another text of it is another run


@pytest.mark.thorough
def test_a_method_in_a_file_reaches_the_processes_of_a_comparison(
    mobifleet, scenario_file, scaffold_file, tmp_path
):
    plain = {"kind": "fedavg-lora", "rounds": 2, "device_batch": 8, "rank": 4}
    path = scenario_file(
        task={"dataset": {"classes": 3, "tokens": 16}, "train": 60, "test": 30},
        compare={"methods": {"mine": SCAFFOLD, "theirs": plain}},
    )
    argv = ("compare", path, "--allow-code", "--dry", "--processes", 2, "--out", tmp_path / "out")
    told = mobifleet(*argv)
    assert told.code == 0, told.err
    [mine] = (tmp_path / "out").rglob("mine*/summary.json")
    assert open_run(mine.parent).summary["totals"]["updates"] == SCAFFOLD["rounds"]


def test_a_mistake_in_its_settings_stands_at_its_place(scenario_file, scaffold_file, mobifleet):
    path = scenario_file(method={**SCAFFOLD, "rounds": 0, "learning_rte": 1})
    told = mobifleet("check", path, "--allow-code")
    assert told.code == 2 and "method.rounds" in told.err
    assert "did you mean 'learning_rate'" in told.err or "learning_rate" in told.err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1", "has no class Quiet"),
        ("class Quiet: pass", "it has no `Config`"),
        (QUIET.replace("FedMobiLLM)", "Fed)", 1), "line 5: NameError"),
        ("class Quiet(:", "line 1: SyntaxError"),
    ],
)
def test_what_is_no_method_says_what_is_missing(text, says, scenario_file, tmp_path, mobifleet):
    (tmp_path / "mine.py").write_text(text)
    path = scenario_file(method={"kind": "mine.py:Quiet"})
    told = mobifleet("check", path, "--allow-code")
    assert told.code == 2 and says in " ".join(told.err.split())


def test_a_file_that_is_not_there_is_named(scenario_file, mobifleet):
    told = mobifleet("check", scenario_file(method={"kind": "none.py:Quiet"}), "--allow-code")
    assert told.code == 2 and "there is no file" in told.err and "none.py" in told.err


def test_python_registers_a_method_under_a_name(scenario_file, monkeypatch):
    monkeypatch.setattr(registry, "_known", dict(registry._known))
    module = runpy.run_path(str(EXAMPLES / "scaffold.py"), run_name="mine")
    register(module["Scaffold"], "scaffold")
    assert load(scenario_file(method={**SCAFFOLD, "kind": "scaffold"})).method.rounds == 3
    with pytest.raises(MethodError, match="already"):
        register(module["Scaffold"], "fed-mobillm")


def test_who_registers_before_anything_else_hides_none_of_ours(shell):
    said = shell(
        "-c",
        "import mobifleet\n"
        "from sim.scenario.settings import Settings\n"
        "class Mine:\n"
        "    class Config(Settings):\n"
        "        rounds: int = 1\n"
        "    device = server = peak_bytes = delivery_bytes = __init__ = lambda self, *who: None\n"
        "mobifleet.register(Mine, 'mine')\n"
        "print(mobifleet.load('quickstart').method.kind)\n",
    ).communicate(timeout=120)
    assert said[0].strip() == "fed-mobillm", said


def test_scaffold_is_a_plain_loop(scenario_file, scaffold_file, tmp_path):
    """Two clients of unlike data, all of them in each round: x, c and every c_i by hand."""
    scenario = load(scenario_file(method=SCAFFOLD), allow_code=True)
    assert isinstance(scenario, Scenario)
    sim = Simulation(scenario, tmp_path)
    sim.run()
    learner, method = sim.method.learner, sim.method
    x = {name: tensor.clone() for name, tensor in learner.initial.items()}
    c = {name: torch.zeros_like(tensor) for name, tensor in x.items()}
    c_of = {d.id: {n: torch.zeros_like(t) for n, t in x.items()} for d in sim.devices}
    rate = method.settings.learning_rate
    for number in range(3):
        moved, changed = [], []
        for device in sim.devices:
            model = learner.models[device.backbone]
            mine = list(model.trainable_parameters())
            seed = method.seed(device, number)
            own, steps = _by_hand(learner, device, {n: x[n] for n in mine}, c, c_of, rate, seed)
            new = {n: c_of[device.id][n] - c[n] + (x[n] - own[n]) / (rate * steps) for n in mine}
            moved.append({n: own[n] - x[n] for n in mine})
            changed.append({n: new[n] - c_of[device.id][n] for n in mine})
            c_of[device.id].update(new)
        for n in x:
            has = [i for i, one in enumerate(moved) if n in one]
            x[n] = x[n] + sum(moved[i][n] for i in has) / len(has)
            c[n] = c[n] + sum(changed[i][n] for i in has) / len(has)
    for n, tensor in learner.state.value.items():
        torch.testing.assert_close(tensor, x[n], rtol=1e-4, atol=1e-6)


def _by_hand(learner, device, x, c, c_of, rate, seed):
    """Steps of y <- y - rate (g - c_i + c), by autograd alone."""
    import numpy as np

    from learning.federated.local_training import inputs

    model = learner.models[device.backbone]
    model.load_trainable(x)
    tokens = learner.tokens(device.backbone, device.samples)
    labels = torch.as_tensor(learner.world.task.labels[device.samples])
    parameters, steps = model.trainable_parameters(), 0
    order = np.random.default_rng(seed).permutation(len(tokens))
    model.train()
    torch.manual_seed(seed)
    for start in range(0, len(order), 8):
        chosen = order[start : start + 8]
        logits = model(*inputs(tokens, chosen))
        loss = torch.nn.functional.cross_entropy(logits, labels[chosen])
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        with torch.no_grad():
            for (name, parameter), g in zip(parameters.items(), gradients, strict=True):
                parameter -= rate * (g - c_of[device.id][name] + c[name])
        steps += 1
    model.eval()
    return {n: p.detach().clone() for n, p in parameters.items()}, steps
