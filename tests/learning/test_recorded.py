"""What is recalled of earlier passes gives the same bits, and spares what is frozen."""

import pytest
import torch

from learning.backbones.catalogue import find
from learning.federated import forward_gradient as fg
from learning.federated.recorded import CannotRecord, Recorded
from learning.federated.trainable import TrainableClassifier


def loss_of(kind, **sizes):
    model = TrainableClassifier(find("random-bert"), kind, 3, **sizes)
    generator = torch.Generator().manual_seed(1)
    ids_BT = torch.randint(5, 60, (4, 6), generator=generator)
    mask_BT = torch.ones(4, 6, dtype=torch.long)
    mask_BT[2, 3:] = 0
    return model, fg.batch_loss(model, ids_BT, mask_BT, torch.tensor([0, 2, 1, 1]))


@pytest.mark.parametrize("kind", ["adapter", "bitfit", "lora"])
def test_a_recorded_loss_is_the_loss_to_the_bit_for_any_state(kind):
    model, loss = loss_of(kind)
    state = model.trainable()
    recorded = Recorded(loss, state)
    for seed in range(3):
        other = fg.moved(state, fg.direction(state, seed), 0.1)
        assert torch.equal(recorded(other), loss(other).detach())
    assert not torch.equal(recorded(other), recorded(state))


def test_what_lies_below_the_first_adapter_is_not_run_again():
    """Two layers of six maps, of which five of the first lie below its adapter; all maps of both
    are run where biases are trained, the head's and the adapters' besides.
    """

    def products(kind, **sizes):
        model, loss = loss_of(kind, **sizes)
        steps = Recorded(loss, model.trainable()).steps
        return sum(str(operation).startswith("aten.addmm") for operation, _, _ in steps)

    assert products("bitfit") == 2 * 6 + 1
    assert products("adapter", adapters="pfeiffer") == 6 + 2 * 2 + 1


@pytest.mark.parametrize(
    "function",
    [
        lambda state: state["a"] * (2 if state["a"].sum() > 0 else 3),
        lambda state: (state["a"] + 1).mul_(2).sum(),
        lambda state: state["a"][state["a"] > 0].sum(),
    ],
    ids=["branches", "in place", "as many as are positive"],
)
def test_what_follows_the_numbers_is_not_recorded(function):
    with pytest.raises(CannotRecord):
        Recorded(function, {"a": torch.tensor([1.0, -2.0])})
