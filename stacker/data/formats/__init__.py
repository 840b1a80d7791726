"""A reader for each way in which data sets are distributed.

A folder, a table or arrays in the layout of one data set come in; rows of a manifest go out, by the
reader that `FORMATS` has for the format. A reader may not know of splits, and refuses a name that its
own grammar does not have.
"""
