"""timm's models behind one contract.

A name, weights and the size of an image come in, or a checkpoint; a `Backbone` goes out, cut into trunk
and head, that answers the same questions whatever its family. This room may not know how it is trained,
nor what maps are made of it.
"""
