"""The page that `SaliencyReport` writes, from a run's records alone."""
