"""What a run tells: its results and how they are shown."""
