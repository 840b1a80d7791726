"""Tissue that is drawn, for the demo and the tests.

A number of cases, a size and a seed come in; pictures in BreakHis's layout and masks of their lesions
go out. This room may not know of the reader that reads them, nor of anything else of the package.
"""
