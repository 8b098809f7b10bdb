"""Figures, timelines and tables of runs."""
