"""Test-time augmentation: flips and scales."""
