"""What differs on a GPU: the same code as everywhere, compared with what the CPU says."""
