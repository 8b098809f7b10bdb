"""docs/comparison.md is what the committed results give; whether a claim held follows from them."""

import copy
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import jinja2
import pytest

ROOT = Path(__file__).resolve().parents[1]
spec = spec_from_file_location("comparison_page", ROOT / "benchmarks" / "comparison.py")
comparison = sys.modules["comparison_page"] = module_from_spec(spec)
spec.loader.exec_module(comparison)

COSTS = {
    **dict.fromkeys(("time_s", "flop", "energy_j"), 1.0),
    **dict.fromkeys(("training_bytes", "communication_bytes", "peak_memory_bytes"), 1.0),
    **dict.fromkeys(("uplink_bytes", "downlink_bytes", "delivery_bytes"), 0.5),
    **dict.fromkeys(("waiting_s", "wasted_bytes"), 0.0),
    "updates": 10.0,
}


def row(method, kind, accuracy, costs, target=None, reference=False):
    """One method's row as a comparison of two seeds writes it: costs that many times `COSTS`."""
    each = [accuracy - 0.001, accuracy + 0.001]
    made = {
        **{"method": method, "kind": kind, "reference": reference, "seeds": 2, "diverged": 0},
        **{"never_above_start": 0, "reached": 2, "target": target, "metric": "accuracy"},
        **{"test_texts": 500, "test_overlap": 0.1, "chosen_each": each, "accuracies": []},
    }
    for name in ("final", "chosen", "device_p10", "device_worst"):
        made |= {name: accuracy, f"{name}_low": accuracy - 0.01, f"{name}_high": accuracy + 0.01}
    for name, value in COSTS.items():
        made |= {name: value * costs, f"{name}_low": value * costs, f"{name}_high": value * costs}
        made[f"{name}_looks"] = [[value * costs] * 2] * 3
    return made


def result(peft=20.0, split=30.0, accuracy=0.85):
    """A comparison of two seeds in which Fed MobiLLM costs 1 of everything."""
    rows = [
        row("fed-mobillm", "fed-mobillm", accuracy, 1.0),
        row("fedavg-lora", "fedavg-lora", 0.8, peft),
        row("splitfed-v1", "splitfed-v1", 0.8, split),
        row("centralised", "centralised", 0.86, 0.1, reference=True),
    ]
    own = {"method": None, "seed": None, "commit": "c0ffee" * 6, "world": "w", "digest": "d"}
    runs = [
        {**own, "method": one["method"], "seed": seed, "settings": f"of {one['method']}"}
        for one in rows
        for seed in (0, 1)
    ]
    return {
        **{"scenario": "table1_small", "seeds": [0, 1], "ours": "fed-mobillm", "learned": 0.0},
        **{"baselines": ["fedavg-lora", "splitfed-v1"], "tuned": None, "notes": []},
        **{"costed_as": "roberta-base", "judged_on": {}},
        "tables": {"cost to own convergence": {"at": "", "rows": rows, "runs": runs}},
    }


def found(data):
    """Claim -> verdict and what was found."""
    judged = list(comparison.judged(comparison.Result(data)))
    return {(claim.says, m.against): (claim.verdict(m), claim.cell(m)) for claim, _, m in judged}


def test_the_page_is_what_the_committed_results_give():
    made = comparison.page(comparison.committed())
    assert made == comparison.PAGE.read_text(encoding="utf-8"), (
        "run `python benchmarks/comparison.py`: docs/comparison.md is not what it writes"
    )


def test_verdicts_follow_the_numbers():
    bytes_ = "communication with delivery: at least 93.2 % less"
    assert found(result(peft=20.0))[bytes_, "fedavg-lora"] == ("held", "95.0 %")
    assert found(result(peft=14.0))[bytes_, "fedavg-lora"] == ("not held", "92.9 %")
    assert found(result(split=5.0))[bytes_, "splitfed-v1"] == ("not held", "80.0 %")
    memory = "memory: 2.68x less, of federated PEFT alone"
    assert found(result(split=5.0))[memory, "fedavg-lora"][1] == "20x"
    # once, where the best of federated PEFT is the best of all
    assert (memory, "fedavg-lora") not in found(result(peft=20.0, split=30.0))
    wide = result()
    looks = wide["tables"]["cost to own convergence"]["rows"][1]["communication_bytes_looks"]
    wide["tables"]["cost to own convergence"]["rows"][1]["communication_bytes_looks"] = [
        [10.0, 10.0],
        looks[1],
        [30.0, 30.0],
    ]
    verdict, cell = found(wide)[bytes_, "fedavg-lora"]
    assert verdict == "cannot be told" and cell == "95.0 % (90.0 % to 96.7 %)"


def test_accuracy_is_held_against_the_best_baseline_and_the_best_reference():
    within = ("accuracy: at most 1.5 points below centralised", "centralised")
    above = ("accuracy: at least 0.3 points above every baseline", "fedavg-lora")
    good, bad = found(result(accuracy=0.9)), found(result(accuracy=0.7))
    assert good[within][0] == "held" and good[within][1].startswith("+4.0 points (")
    assert good[above][0] == "held" and bad[above][0] == bad[within][0] == "not held"


def test_the_page_says_what_was_found_and_what_carries_it():
    text = comparison.page({"table1_small": comparison.Result(result(peft=14.0))})
    assert "| **not held** |" in text and "| **held** |" in text
    assert "the published 95.2 % would be at about 208 updates" in text  # 1 / 0.048 / (14 / 140)
    assert "c0ffeec0ffee" in text and "2 seeds" in text
    assert "| fedavg-lora | 0.800 ± 0.010 |" in text and r"| centralised \(reference\) |" in text


def test_the_page_names_who_has_not_learned_by_the_validation_texts():
    data = result(peft=14.0, split=30.0)
    data["learned"] = 0.75
    [table] = data["tables"].values()
    for row, validated in zip(table["rows"], (0.8, 0.7, 0.8, 0.8), strict=True):
        row["validated"] = validated
    text = comparison.page({"table1_small": comparison.Result(data)})
    assert "below 0.75 on the validation texts: fedavg-lora (0.700; 92.9 % of its bytes" in text
    assert {against for _, against in found(data)} == {"splitfed-v1", "centralised"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"commit": "0ther"}, "several commits: 0ther, c0ffee"),
        ({"settings": "others"}, "fedavg-lora has several settings"),
        ({"world": "another"}, "did not meet the same world"),
        ({"seed": 0}, "fedavg-lora lacks seeds"),
        ({"method": "nobody"}, "rows are not those of its runs"),
    ],
)
def test_a_table_that_is_not_of_one_piece_is_refused(change, said):
    data = result()
    [table] = data["tables"].values()
    table["runs"][3] |= change
    with pytest.raises(comparison.Refused, match=said):
        comparison.Result(data)


@pytest.mark.parametrize("commit", ["c0ffee-dirty", "c0ffee, beef", None])
def test_a_table_of_changed_code_or_of_none_that_is_known_is_refused(commit):
    data = result()
    [table] = data["tables"].values()
    for run in table["runs"]:
        run["commit"] = commit
    with pytest.raises(comparison.Refused, match="no one commit"):
        comparison.Result(data)


def test_a_number_that_the_results_do_not_hold_cannot_be_printed():
    results = {"table1_small": comparison.Result(result())}
    own = "{% set row = results.table1_small.table().rows['fed-mobillm'] %}"
    assert comparison.page(results, own + "{{ row.flop|flop }}") == "1 FLOP"
    for text in ("{{ row.folp|flop }}", "{{ results.table2.seeds }}"):
        with pytest.raises((jinja2.UndefinedError, comparison.Refused)):
            comparison.page(results, own + text)
    without = copy.deepcopy(result())
    without["tables"]["cost to own convergence"]["rows"][0]["flop"] = None
    with pytest.raises(comparison.Refused, match="do not hold a number"):
        comparison.page({"table1_small": comparison.Result(without)}, own + "{{ row.flop|flop }}")
