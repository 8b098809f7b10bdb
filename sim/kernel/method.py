"""What a method is: settings, what a device does, what the server does, and what they learn."""

from __future__ import annotations

from collections.abc import Generator
from typing import ClassVar, Protocol

import simpy
from pydantic import BaseModel

from sim.kernel.device import Device
from sim.kernel.learner import Learner
from sim.kernel.server import Server


class Method(Protocol):
    """One training method, for one run; built as `MyMethod(config, world)`."""

    Config: ClassVar[type[BaseModel]]
    """Its settings; their `kind` is what a scenario calls the method."""
    learner: Learner
    # keeps_on_device: Collection[str] of kinds (`sim.kernel.ledger.KINDS`) that no upload may hold;
    # a method that has none declares nothing

    def device(self, device: Device) -> Generator[simpy.Event, None, None]:
        """All that a device does from its joining to its end."""

    def server(self, server: Server) -> Generator[simpy.Event, None, None]:
        """All that the server does from the start to the end of the training."""

    def peak_bytes(self, device: Device) -> int:
        """The most memory that the method takes on the device, weights included; 0 where nothing
        runs there.
        """

    def delivery_bytes(self, device: Device) -> int:
        """What the device must still download to predict with the model as the server has it: what
        was trained, and not the public backbone; 0 where it has all of it, or none is made for it.
        """
