"""Scenario files: what they may say, checked before anything is built, with every mistake at its
place.
"""

from pathlib import Path

SCENARIOS = Path(__file__).resolve().parents[2] / "scenarios"
"""The shipped ones."""
