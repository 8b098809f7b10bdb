"""The methods a scenario may name. A new one is a file beside this one and a line in `METHODS`."""

from __future__ import annotations

import functools
import operator
from typing import Annotated

from pydantic import Field

from sim.methods.federated_peft.fed_async import FedAsync
from sim.methods.federated_peft.fed_avg import FedAvg
from sim.methods.federated_peft.flex_lora import FlexLoRA
from sim.methods.forward_only.fed_mezo import FedMezo
from sim.methods.forward_only.fwdllm import FwdLLM
from sim.methods.forward_only.spry import Spry
from sim.methods.on_device.local_lora import LocalLoRA
from sim.methods.on_device.local_lst import LocalLST
from sim.methods.side_tuning.centralised import Centralised
from sim.methods.side_tuning.fed_mobillm import FedMobiLLM
from sim.methods.side_tuning.mobillm import MobiLLM
from sim.methods.side_tuning.pae_mobillm import PaeMobiLLM
from sim.methods.side_tuning.single_side_network import SingleSideNetwork
from sim.methods.split.fedbert import FedBert
from sim.methods.split.split_fed import SplitFed

METHODS = (
    FedMobiLLM,
    FedAvg,
    FlexLoRA,
    FedAsync,
    PaeMobiLLM,
    SplitFed,
    FwdLLM,
    FedMezo,
    Spry,
    FedBert,
    Centralised,
    SingleSideNetwork,
    LocalLoRA,
    LocalLST,
    MobiLLM,
)

AnyMethod = Annotated[
    functools.reduce(operator.or_, [method.Config for method in METHODS]),
    Field(discriminator="kind"),
]
"""The settings of any one method; their `kind` tells them apart."""


def method_for(config):
    """The method class whose settings these are."""
    return next(method for method in METHODS if type(config) is method.Config)
