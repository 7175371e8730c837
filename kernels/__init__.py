"""CUDA C++ sources, their compiler and their launch signatures."""
