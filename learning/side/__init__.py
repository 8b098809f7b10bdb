"""Side-tuning: sampled activations of a backbone, their wire format, and the side network trained
on them.
"""
