"""What a run reports: its results and how they are shown."""
