"""What the work costs on this machine, beside the usual way to do it.

A config comes in, or nothing but a size; times go out. No stage may know of this room, and what it
measures is the product's own code.
"""
