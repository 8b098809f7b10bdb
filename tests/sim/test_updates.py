"""What is learned is in sight: the file of every method of ours names its client update and its
server update, functions of states and data that know of no clock, and these are what runs.
"""

import copy
import dataclasses
import inspect
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from learning.federated.forward_gradient import Probe
from learning.federated.split import Pass
from learning.side.tuning import SideNetworkTrainer
from sim.methods import METHODS

small = runpy.run_path(str(Path(__file__).with_name("test_settings_count.py")))
METHOD_OF = {
    kind: method
    for method in METHODS
    if method.Config.responses != "only"  # test_language_modelling.py
    for kind in get_args(method.Config.model_fields["kind"].annotation)
}
# where a file holds two methods, or no server learns; all others say client_update, server_update
NAMES = {
    "fedasync": ("locally_trained", "mixed_in"),
    "fedbuff": ("local_delta", "buffered"),
    "local-lora": ("client_update",),
    "local-lst": ("client_update",),
}
OF_THE_SIMULATION = {"World", "Device", "Server", "Payload", "ClientTask", "Work", "Learned"}


def updates(kind):
    """Where each update of a kind stands, the class or its file, and its name."""
    method = METHOD_OF[kind]
    for name in NAMES.get(kind, ("client_update", "server_update")):
        in_class = isinstance(vars(method).get(name), staticmethod)
        yield (method if in_class else sys.modules[method.__module__]), name


@pytest.mark.parametrize("kind", METHOD_OF)
def test_a_methods_file_names_its_updates_and_these_know_of_no_simulation(kind):
    for owner, name in updates(kind):
        update = getattr(owner, name, None)
        assert inspect.isfunction(update), f"{owner.__name__} has no {name}"
        assert update.__module__.startswith("sim.methods.") and update.__doc__
        for parameter in inspect.signature(update).parameters.values():
            words = set(str(parameter.annotation).replace("[", " ").replace("]", " ").split())
            assert parameter.annotation is not parameter.empty
            assert not words & OF_THE_SIMULATION and parameter.name != "self", (name, parameter)


@pytest.mark.parametrize("kind", METHOD_OF)
def test_updates_are_pure_and_what_is_learned_is_theirs(kind, simulate, monkeypatch):
    def learned():
        return simulate(method=small["small"](kind), **small["WORLD"]).method.learner.digest()

    called = set()
    for owner, name in updates(kind):
        plant(monkeypatch, owner, name, lambda update: twice(update, called))
    right = learned()
    monkeypatch.undo()
    assert called == {getattr(*update).__name__ for update in updates(kind)}
    for owner, name in updates(kind):
        with monkeypatch.context() as planted:
            plant(planted, owner, name, wrong)
            assert learned() != right, f"{name} of {kind} moves nothing"


def plant(monkeypatch, owner, name, change):
    """Put another function in an update's place."""
    update = change(getattr(owner, name))
    monkeypatch.setattr(owner, name, staticmethod(update) if inspect.isclass(owner) else update)


def twice(update, called):
    """The update, tried once: what it gives for the same things is the same. A `Pass` backward is
    the one thing that happens but once.
    """

    def own(args):
        taken = SideNetworkTrainer | np.random.Generator
        return [copy.deepcopy(arg) if isinstance(arg, taken) else arg for arg in args]

    def tried(*args):
        if update.__name__ not in called and not any(isinstance(arg, Pass) for arg in args):
            made = flat(update(*own(args)))
            assert made and made == flat(update(*own(args)))
        called.add(update.__name__)
        return update(*args)

    tried.__qualname__ = update.__qualname__
    return tried


def wrong(update):
    """The update, with all that it gives a little off."""

    def off(*args):
        return spoilt(update(*args))

    off.__qualname__ = update.__qualname__
    return off


def spoilt(value):
    """Tensors, arrays and derivatives a little larger; everything else as it is."""
    if isinstance(value, np.ndarray) or torch.is_tensor(value):
        return value + 0.01
    if isinstance(value, Probe):
        return dataclasses.replace(value, derivative=value.derivative + 1.0)
    if isinstance(value, SideNetworkTrainer):
        with torch.no_grad():
            for parameter in (*value.network.parameters(), *value.averaged.parameters()):
                parameter += 0.01
    if isinstance(value, Mapping):
        return {name: spoilt(one) for name, one in value.items()}
    return type(value)(map(spoilt, value)) if isinstance(value, list | tuple) else value


def flat(value):
    """All numbers in it, to be compared bit by bit."""
    if isinstance(value, SideNetworkTrainer):
        value = value.saved()
    if dataclasses.is_dataclass(value):
        value = vars(value)
    if torch.is_tensor(value):
        value = value.detach().numpy()
    if isinstance(value, np.ndarray):
        return [value.tobytes()]
    if isinstance(value, Mapping):
        return [part for name, one in value.items() for part in (name, *flat(one))]
    if isinstance(value, list | tuple):
        return [part for one in value for part in flat(one)]
    return [repr(value)]
