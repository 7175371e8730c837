"""TensorRT: flavours, logging, engines and execution contexts."""
