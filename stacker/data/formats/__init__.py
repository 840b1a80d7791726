"""One file per format of data sets, and the registry of them all."""
