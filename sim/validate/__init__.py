"""The same methods in the real world: processes, sockets and torch, paced to the scaled time of
their devices and links.
"""
