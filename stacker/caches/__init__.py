"""The HDF5 between the halves: what a cache holds, how it is written and read, which rows it has."""
