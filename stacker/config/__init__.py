"""The settings of a run, by section, and how they are read."""
