"""A synthetic BreakHis, for the demo and for tests."""
