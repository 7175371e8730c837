"""Public models by name: download, check, convert."""
