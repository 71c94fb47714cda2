"""What the callbacks need of Lightning: batches, the network, the map's source, both package names."""
