"""A small licence-clean calibration set and its manifest."""
