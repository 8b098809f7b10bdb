"""What is sent, as fewer bytes: projections, the largest numbers, number formats, entropy codes."""
