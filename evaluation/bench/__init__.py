"""The latency and throughput benchmark."""
