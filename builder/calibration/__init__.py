"""Calibration: images -> ranges -> histograms -> thresholds, and the record of them."""
