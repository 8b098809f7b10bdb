"""Attacks on what a server has seen, for real: pure functions over arrays, each of which says how
far it gets beside who guesses. Needs `pip install 'mobifleet[privacy]'`.
"""
