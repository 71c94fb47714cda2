"""The parts of `SaliencyMonitor`."""
