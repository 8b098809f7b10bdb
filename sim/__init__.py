"""Who does what in which order: scenario, actors, methods, recorder, results, command line."""
