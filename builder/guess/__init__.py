"""Guess the ModelSpec of a graph."""
