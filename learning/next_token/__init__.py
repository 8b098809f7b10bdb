"""Side-tuning of decoders on next-token tasks."""
