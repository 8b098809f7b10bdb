"""What devices train and how a server makes one model of many: gradients, forward gradients, split
models. Pure functions.
"""
