"""Sparse convolution kernels in C++ and the executor that runs whole networks on them."""
