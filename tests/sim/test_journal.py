"""The parts of a resumed run: names of what was learned, pieces that give it, notes and checkpoints
that keep it.
"""

import numpy as np
import pytest

from sim.kernel.checkpoint import Checkpoint, Packed
from sim.kernel.host import Host
from sim.kernel.journal import UNKNOWN, Journal
from sim.kernel.learned import Learned, Taken, key_of


def test_notes_come_back_as_they_were_and_a_fresh_journal_forgets_them(tmp_path):
    journal, values = (
        Journal(tmp_path),
        {"a": {"x": 1 / 3}, "b": 0.1 + 0.2, "c": [True, 7], "d": float("inf")},
    )
    for key, value in values.items():
        journal.note(key, value)
    again = Journal(tmp_path, resume=True)
    assert {key: again.noted(key) for key in values} == values
    assert again.noted("e") is UNKNOWN
    assert Journal(tmp_path).noted("a") is UNKNOWN
    assert not (tmp_path / "journal.jsonl").exists()


def test_values_come_back_to_the_bit_and_share_what_they_shared(tmp_path):
    import torch

    from learning.federated.aggregation import ServerMoments

    shared = torch.randn(3, 4)
    values = {
        "state": {
            "w": shared,
            "odd": torch.randn(6, 4).T,
            "one": torch.tensor(2.5),
            "none": torch.zeros(0, 3),
        },
        "other": [{"w": shared, "column": shared[:, 1]}],
        "bytes": b"\x00\x01\x02",
        "array": np.arange(6, dtype=np.int64).reshape(2, 3)[:, ::-1],
        "moments": ServerMoments({"w": shared + 1}, {}),
        "plain": (1, 0.1, "text", None, True, [b""], float("inf")),
    }
    packed = Packed(values)
    assert packed.nbytes < 3 * 12 * 4 + 24 * 4 + 6 * 8 + 100  # what is shared is there once
    packed.write(tmp_path / "c", 17, 3)
    read = Checkpoint(tmp_path / "c")
    assert (read.position, read.notes) == (17, 3)
    assert ("state" in read, "absent" in read) == (True, False)
    state, other = read["state"], read["other"]
    for name, tensor in values["state"].items():
        assert torch.equal(state[name], tensor) and state[name].shape == tensor.shape
    assert other[0]["w"] is state["w"]
    assert torch.equal(other[0]["column"], shared[:, 1])
    assert read["bytes"] == values["bytes"]
    assert np.array_equal(read["array"], values["array"]) and read["array"].dtype == np.int64
    assert torch.equal(read["moments"].m["w"], shared + 1)
    assert read["plain"] == values["plain"]
    with pytest.raises(TypeError, match="no learner may store"):
        Packed({"object": object()})


def test_a_key_names_function_and_arguments_by_content():
    one, other = Learned("1"), Learned("2")
    arguments = [
        (),
        (1,),
        (1.0,),
        ("1",),
        (b"1",),
        ([1],),
        ((1,), 2),
        ((1, 2),),
        (None,),
        ({"a": 1},),
        ({"a": 2},),
        (one,),
        (other,),
        ([one],),
        ((one, other),),
        ((other, one),),
        (Taken(one), 1),
        (np.arange(4),),
        (np.arange(4).reshape(2, 2),),
        (np.arange(4.0),),
        (np.arange(3),),
    ]
    keys = [key_of(sorted, one) for one in arguments]
    assert len(set(keys)) == len(keys)
    assert keys == [key_of(sorted, one) for one in arguments]
    assert key_of(len, ()) != key_of(sorted, ())
    long = list(range(50))
    assert key_of(sorted, (long,)) == key_of(sorted, (tuple(long),))  # as JSON gives it back
    assert key_of(sorted, (long,)) != key_of(sorted, ([*long[:-1], 7],))
    with pytest.raises(TypeError, match="no name"):
        key_of(sorted, (object(),))


def test_what_is_taken_is_there_no_more_and_results_that_nobody_holds_are_let_go():
    host, numbers = Host(1), [3, 1, 2]
    first = host.learn(list, numbers)
    second = host.learn(sorted, Taken(first))
    assert second.value == [1, 2, 3]
    assert not first.is_there
    with pytest.raises(LookupError, match="taken"):
        first.value  # noqa: B018
    quotient, rest = host.learn(divmod, 17, 5, stored=(True, True))
    assert (quotient.value, rest.value) == (3, 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_piece_comes_where_its_value_is_asked_for(workers):
    host = Host(workers)
    broken = host.learn(divmod, 1, 0)
    after = host.learn(len, broken)
    for learned in (broken, after):
        with pytest.raises(ZeroDivisionError):
            learned.value  # noqa: B018
    host.close()
