"""What a run's server has seen, and how far attacks on it get."""
