"""Runs a bundle: pre-processing, network, decode, detections."""
