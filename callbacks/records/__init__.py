"""What the callbacks write down of a run."""
