"""Dynamic batching behind `Detector.submit`."""
