"""How files that a user hands over are read: the one place below the leaves, without a library's
error getting out.
"""
