"""PAE MobiLLM (arXiv 2507.01216): one device runs forward passes, a server trains a side network
and never sees a label.

A device uploads, for each sample, one vector of every layer and the difference between the truth
and its backbone's own prediction. The server keeps what it gets: in later epochs a recurring sample
is neither computed nor sent again, and the server goes on alone. Both savings can be switched off.
Fed MobiLLM adds unlike backbones (docs/pae_mobillm.md).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from learning.codecs.chain import Wire
from learning.side.full_activations import plain
from sim.kernel.device import Device
from sim.kernel.server import Server
from sim.methods.side_tuning.matrix_uploads import MatrixUploads
from sim.methods.side_tuning.protection import ProtectedSettings
from sim.methods.side_tuning.shared import SideTuningSettings
from sim.methods.side_tuning.shipping import Shipping, Ships
from sim.methods.side_tuning.updates import one_step, with_differences
from sim.scenario.settings import OnlyFor


class PaeMobiLLM(MatrixUploads):
    """Additive side-tuning with a one-token shortcut, an activation cache at the server, and no
    labels there.
    """

    class Config(SideTuningSettings, ProtectedSettings):
        """Settings of PAE MobiLLM."""

        only_for: ClassVar[OnlyFor] = {
            "server_batch": ("`cache: true`", lambda settings: settings.cache)
        }
        kind: Literal["pae-mobillm"]
        epochs: int = Field(20, ge=1)
        """Passes over the samples."""
        cache: bool = True
        """Keep activations at the server; otherwise every epoch is computed and sent again."""
        shortcut: Literal["pivot", "matrix"] = "pivot"
        """Send one vector of a layer (the one the readout names), or the whole matrix [tokens,
        width].
        """
        wire: Wire = ("float32",)
        """How activations are sent: a number format or, of single vectors, a list with one, as
        [pca-64, int8, zstd].
        """
        loss: Literal["squared-error"] = "squared-error"
        """On the prediction difference: the server has no labels."""
        server_batch: int = Field(32, ge=1)
        """Records of one update from the cache; without a cache every payload is one update."""
        ship_side_network: Ships = Shipping()
        """After training, send each device the side network."""

        @model_validator(mode="after")
        def _what_is_for_vectors(self):
            if self.shortcut == "matrix":
                plain(self.wire)
                if self.protection is not None:
                    self.protection.for_matrices(has_differences=True)
            return self

        @property
        def keeps_records(self) -> bool:
            """Without a cache every payload is one update, and then forgotten."""
            return self.cache

        def unfit(self) -> Iterator[tuple[str, str]]:
            """Here a cache can be had."""
            for name, what in super().unfit():
                yield name, what if self.cache else f"{what}, or say `cache: true`"

        @property
        def replay(self) -> int:
            """With a cache every record is used once an epoch."""
            return self.epochs

        @property
        def update_share_on_arrival(self) -> float:
            """The first epoch is trained as samples arrive, the others follow when all have
            arrived.
            """
            return 1 / self.epochs

    client_update = staticmethod(with_differences)
    server_update = staticmethod(one_step)

    def device(self, device: Device) -> Generator:
        """Its own data: once with a cache at the server, once an epoch without."""
        yield from self.begin(device)
        for _ in range(1 if self.config.cache else self.config.epochs):
            yield from self.pass_over_data(device)

    def server(self, server: Server) -> Generator:
        """With a cache as in Fed MobiLLM; without, every payload is one update and then
        forgotten.
        """
        if self.config.cache:
            yield from super().server(server)
        else:
            yield from self.train_as_it_comes(server)
