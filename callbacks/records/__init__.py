"""What the callbacks record of a run."""
