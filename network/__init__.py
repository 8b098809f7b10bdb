"""When the bytes land: links, fair sharing, capacity traces."""
