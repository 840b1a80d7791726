"""What the work costs on this machine, against common alternatives.

A config comes in, or nothing but a size; times go out. A stage may not know of this room, and what
it measures is the product's own code.
"""
