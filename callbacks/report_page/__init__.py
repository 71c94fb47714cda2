"""The page that `SaliencyReport` writes, from records alone."""
