"""Nothing that only Linux has stands in the way of importing and asking: as far as that can be
tried without the others.
"""

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGES = ("mobifleet", "inputs", "learning", "devices", "network", "sim")
POSIX_ONLY = ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "crypt", "spwd", "syslog")
# libraries that ask for one of them fall back by themselves, as they do on Windows
WITHOUT = f"""
import importlib, pkgutil, sys
import psutil  # which has a body of its own for every system
for name in {POSIX_ONLY}:
    sys.modules[name] = None
for package in {PACKAGES}:
    found = importlib.import_module(package)
    for module in pkgutil.walk_packages(found.__path__, package + "."):
        importlib.import_module(module.name)
"""


@pytest.mark.thorough
def test_every_module_is_imported_without_what_windows_lacks():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
