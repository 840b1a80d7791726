"""Tables for the terminal.

Plain results come in; what rich can render goes out. A table may not compute a result, and prints
nothing.
"""
