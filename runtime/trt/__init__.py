"""TensorRT: flavours, logging, engines and execution contexts. Knows nothing of kernels."""
