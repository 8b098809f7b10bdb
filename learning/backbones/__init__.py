"""Frozen models: which there are, where their weights and tokenizers come from, how they are put
together and read.
"""
