"""The CUDA driver API by cuda-bindings or PyCUDA: devices, memory, streams, events, modules and graphs."""
