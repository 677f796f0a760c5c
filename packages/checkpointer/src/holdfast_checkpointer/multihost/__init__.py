"""What the processes of one job say to each other, over the host's key/value store only."""
