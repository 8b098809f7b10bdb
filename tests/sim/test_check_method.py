"""What every method promises, tried on ours and on those of the examples; and promises broken on
purpose.
"""

import runpy
from pathlib import Path

import pytest

from sim.kernel.device import Payload
from sim.kernel.ledger import only
from sim.methods import METHODS
from sim.methods.side_tuning.fed_mobillm import FedMobiLLM
from sim.testing import check_method

small = runpy.run_path(str(Path(__file__).with_name("test_settings_count.py")))
KINDS = small["KINDS"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_method_of_ours_keeps_its_promises(kind):
    settings = small["small"](kind)
    if kind == "fwdllm":
        settings["variance_threshold"] = None  # a dry run cannot know gradients
    method = next(m for m in METHODS if m.Config is small["config_of"](kind))
    check_method(method, **settings)


@pytest.mark.thorough
def test_the_example_keeps_them_too():
    example = Path(__file__).parents[2] / "examples" / "methods" / "scaffold.py"
    check_method(runpy.run_path(str(example), run_name="scaffold")["Scaffold"], rounds=2, rank=4)


class Underpaid(FedMobiLLM):
    """Charges for half of what it sends."""

    def payload(self, device, samples, activations):
        made = super().payload(device, samples, activations)
        half = only("activation", made.nbytes // 2)
        return Payload(made.number, device, samples, half, made.data)


class Forgetful(FedMobiLLM):
    """Makes payloads that it does not send."""

    def pass_over_data(self, device):
        for batch in device.batches(self.config.device_batch):
            activations = yield from device.compute(self.forward(device, batch.samples))
            payload = self.payload(device, batch.samples, activations)
            if batch.samples[0] % 2:
                yield from device.send(payload)


class Greedy(FedMobiLLM):
    """Says that it needs no memory."""

    def peak_bytes(self, device):
        return 0


class Free(FedMobiLLM):
    """Says that its side network comes to the devices without a byte."""

    def delivery_bytes(self, device):
        return 0

    def end(self, server):
        self.world.end_training(self.learner)
        yield from server.deliver(self.world.devices, super().delivery_bytes)


@pytest.mark.parametrize(
    ("method", "says"),
    [
        (Free, "delivery_bytes"),
        (Underpaid, "bytes"),
        (Forgetful, "made to be sent"),
        (Greedy, "peak_"),
    ],
)
def test_a_broken_promise_is_told(method, says):
    with pytest.raises(AssertionError, match=says):
        check_method(method, f"broken-{method.__name__.lower()}", replay=4, server_batch=6)
