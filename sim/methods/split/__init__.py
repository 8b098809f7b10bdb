"""The model is cut: devices train the first part, the server the rest, batch by batch."""
