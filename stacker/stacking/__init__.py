"""Stage three: a meta-learner on what base models said.

The caches of a run come in; fitted stacks, scores with intervals, and the predictions behind every score
go out. This room may not know of backbones, training or maps but by what they left in the caches, and
takes no row whose case trained the model behind it.
"""
