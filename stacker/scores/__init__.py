"""Numbers about predictions, in numpy and scipy.

Labels, probabilities, cases and parts come in as arrays; scores, intervals and tests of differences go
out. This room may not know of any run, file or model.
"""
