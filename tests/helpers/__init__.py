"""Shared by the tests: reference networks, file writers, the stand-in driver and the fake TensorRT."""
