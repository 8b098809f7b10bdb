"""More than a thousand damaged inputs: each ends with exit code 0 or 2 and words for the user, none
writes outside its folder.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("worker.py")
MOST_BYTES = 2**30  # of memory, beyond what the libraries take by themselves
# the worker reports its own peak; torch and transformers alone come to about 0.6 GB
LIBRARIES_BYTES = 0.8 * 2**30
# a process each, 1,100 inputs
PARTS = ({"scenarios": 620, "models": 50, "runs": 40}, {"data": 240, "series": 150})


@pytest.mark.thorough
@pytest.mark.parametrize(
    "counts", PARTS, ids=lambda counts: "-".join(f"{n}-{kind}" for kind, n in counts.items())
)
def test_no_input_whatever_ends_in_a_traceback(counts, tmp_path):
    environment = {
        "MOBIFLEET_CACHE": tmp_path / "cache",
        "MPLCONFIGDIR": tmp_path / "mpl",
        "TMPDIR": tmp_path / "tmp",
    }
    for folder in environment.values():
        folder.mkdir()
    done = subprocess.run(
        [
            sys.executable,
            str(WORKER),
            ",".join(f"{kind}:{n}" for kind, n in counts.items()),
            "0",
            str(tmp_path),
        ],
        # compiled modules of ours are nothing that an input wrote
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            **{name: str(folder) for name, folder in environment.items()},
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    *fed, peak = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(fed) == sum(counts.values())
    for one in fed:
        assert one["code"] in (0, 2), one
        assert one["code"] == 0 or one["err"].strip(), one
        assert "Traceback" not in one["err"] and not one["strays"], one
    assert {(one["kind"], one["code"]) for one in fed} == {
        (kind, code) for kind in counts for code in (0, 2)
    }
    assert peak["peak_bytes"] <= LIBRARIES_BYTES + MOST_BYTES
