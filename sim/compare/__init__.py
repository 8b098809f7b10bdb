"""`mobifleet compare`: several methods on one scenario, in one table."""
