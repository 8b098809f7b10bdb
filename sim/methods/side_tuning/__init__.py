"""Devices run frozen backbones and upload activations; the server trains a side network."""
