"""Guess a ModelSpec from a graph."""
