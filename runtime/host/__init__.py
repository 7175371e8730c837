"""The CPU backend, which is also the reference arithmetic."""
