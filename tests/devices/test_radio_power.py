"""Radio power by rate: joules are its integral, the profiles' numbers are those of the measured
lines.
"""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices import profile
from devices.power import fit_radio, transfer_joules

TRACES = Path(__file__).resolve().parents[3] / "shared" / "traces"
PHONE = profile.load("phone-2024-flagship").engine("simple").power
BASE_AND_SCREEN_W = 2.33


def test_worked_number_of_the_docs():
    """1 MB up in 0.4 s (20 Mbit/s): 1.096 x 0.4 + 0.0767 x 8 = 1.052 J, the constant's 2.63 W; at 5
    Mbit/s 2.367 J.
    """
    assert transfer_joules(PHONE, "uplink", 0.4, 1e6) == pytest.approx(1.052)
    assert transfer_joules(PHONE, "uplink", 0.4, 1e6, by_rate=False) == pytest.approx(2.63 * 0.4)
    assert transfer_joules(PHONE, "uplink", 1.6, 1e6) == pytest.approx(2.3672)
    assert transfer_joules(PHONE, "uplink", 1.6, 1e6, by_rate=False) == pytest.approx(4.208)


@settings(deadline=None)
@given(rates_mbps=st.lists(st.floats(0, 100), min_size=1, max_size=30))
def test_joules_are_the_integral_of_power_whatever_the_rate_does(rates_mbps):
    """One second at each rate: the sum of a + b x rate."""
    integral_j = sum(
        PHONE.downlink_base_w + PHONE.downlink_w_per_mbps * rate for rate in rates_mbps
    )
    nbytes = sum(rates_mbps) * 1e6 / 8
    assert transfer_joules(PHONE, "downlink", len(rates_mbps), nbytes) == pytest.approx(integral_j)


def test_the_two_forms_agree_where_the_constant_was_taken():
    assert PHONE.uplink_base_w + 20 * PHONE.uplink_w_per_mbps == pytest.approx(
        PHONE.uplink_w, abs=1e-3
    )
    assert PHONE.downlink_base_w + 50 * PHONE.downlink_w_per_mbps == pytest.approx(
        PHONE.downlink_w, abs=1e-3
    )


def test_a_device_without_a_line_keeps_its_constant():
    tx2 = profile.load("jetson-tx2").engine("simple").power
    assert transfer_joules(tx2, "uplink", 10.0, 1e9) == 40.0


def measured(network: str, way: str) -> tuple[np.ndarray, np.ndarray]:
    """(Mbit/s, watts of the whole phone) of an S20 Ultra sending or receiving at a controlled
    rate.
    """
    if not TRACES.is_dir():
        pytest.skip("the measured series are not here")
    with (TRACES / "radio_power_s20_verizon.csv").open() as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if (row["network"], row["direction"]) == (network, way)
        ]
    mbps, mw = (
        np.array([float(row[name]) for row in rows])
        for name in ("throughput_mbps", "phone_power_mw")
    )
    return mbps, mw / 1000


@pytest.mark.parametrize("way", ["uplink", "downlink"])
def test_the_profiles_carry_the_lines_of_the_measured_series(way):
    base_w, w_per_mbps = fit_radio(*measured("LTE", way))
    assert base_w - BASE_AND_SCREEN_W + PHONE.idle_w == pytest.approx(
        getattr(PHONE, f"{way}_base_w"), abs=1e-3
    )
    assert w_per_mbps == pytest.approx(getattr(PHONE, f"{way}_w_per_mbps"), abs=5e-5)


def test_a_line_fitted_on_one_carrier_predicts_the_joules_of_another():
    """5G NSA low band, Verizon at set rates against five walks with T-Mobile: total within 5 %,
    each walk within 15 %.
    """
    base_w, w_per_mbps = fit_radio(*measured("NSALow", "uplink"))
    predicted_j, found_j = [], []
    for path in sorted((TRACES / "uplink_1s").glob("5g_nsa_low_tmobile_*.csv")):
        with path.open() as file:
            rows = [
                row
                for row in csv.DictReader(file)
                if row["iface_tx_mbps"] and row["power_minus_idle_mw"]
            ]
        mbps = np.array([float(row["iface_tx_mbps"]) for row in rows])
        predicted_j.append(float(np.sum(base_w - BASE_AND_SCREEN_W + w_per_mbps * mbps)))
        found_j.append(sum(float(row["power_minus_idle_mw"]) for row in rows) / 1000)
    assert len(found_j) == 5
    assert sum(predicted_j) == pytest.approx(sum(found_j), rel=0.05)
    np.testing.assert_allclose(predicted_j, found_j, rtol=0.15)
