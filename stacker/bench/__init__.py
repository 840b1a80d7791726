"""Measured on this machine, in one run: what each stage costs, beside the usual ways to do the same."""
