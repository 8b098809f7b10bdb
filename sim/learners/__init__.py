"""What the methods learn: real in a run; the one that learns nothing serves dry runs. All answer to the same calls."""
