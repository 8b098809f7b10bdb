"""Devices train a small part of the model by gradients and send it; the server averages."""
