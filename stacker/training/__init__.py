"""Stage one: every backbone is fine-tuned in every fold.

A run with its images and its split comes in; a base model for each backbone and fold goes out, with a
list of the cases that trained it. This room may not know of stage three, and no base model sees the part
that its fold holds out, nor the test cases.
"""
