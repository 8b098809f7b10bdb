"""What a run leaves behind: its folder, its tables and totals, and reading them back."""
