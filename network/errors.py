"""What a user can get wrong about the network."""


class NetworkError(ValueError):
    """A number, name or file that the network cannot work with; the message says what to do."""
