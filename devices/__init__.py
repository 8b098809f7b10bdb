"""How long it takes and how many joules: measured device profiles and their models."""
