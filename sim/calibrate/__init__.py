"""`mobifleet calibrate`: this machine, or a path between two, becomes a profile that a scenario can
name.
"""
