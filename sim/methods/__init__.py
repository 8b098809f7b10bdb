"""The methods that come with mobifleet, by family. A new one of ours is a file in its family's
folder and a line in `METHODS`; one of yours needs neither (docs/write_a_method.md).
"""

from __future__ import annotations

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
from sim.methods.side_tuning.next_token import NextTokenSideTuning
from sim.methods.side_tuning.pae_mobillm import PaeMobiLLM
from sim.methods.side_tuning.single_side_network import SingleSideNetwork
from sim.methods.split.fedbert import FedBert
from sim.methods.split.split_fed import SplitFed
from sim.scenario.registry import register

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
    NextTokenSideTuning,
)

for _method in METHODS:
    register(_method)
