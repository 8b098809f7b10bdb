"""Devices probe the loss by forward passes alone; seeds, scalars or gradients travel."""
