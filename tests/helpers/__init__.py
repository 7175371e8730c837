"""What the tests share: reference networks, writers of files, the stand-in driver and the fake TensorRT."""
