"""`mobifleet sweep`: one scenario at every combination of some settings, methods and seeds."""
