"""A latency model of one device: predicts kernels that were never measured, with its uncertainty."""
