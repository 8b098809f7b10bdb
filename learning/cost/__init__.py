"""What work costs, in FLOP and bytes: counted once without numbers, then looked up."""
