"""Recipes (TOML), one for each known model."""
