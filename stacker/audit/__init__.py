"""What would go wrong, found before GPU time is spent.

A config comes in; findings on images, split, backbones and disk go out. This room may not fix anything,
and no stage knows of it but by the report that it left.
"""
