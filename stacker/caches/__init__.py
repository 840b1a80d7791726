"""The HDF5 between the two halves.

Arrays and where they came from go in; the same come out, compared with their digests, in files that any
tool can read. This room may not know of torch, nor of scikit-learn: it is all that the halves share.
"""
