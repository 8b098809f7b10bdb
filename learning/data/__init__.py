"""Labelled texts: read from anywhere, cleaned by one rule, divided among devices."""
