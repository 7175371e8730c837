"""Files of checkpoints: their formats, read as data."""
