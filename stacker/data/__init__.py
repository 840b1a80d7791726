"""Who every image is, and who is held out from whom.

A data set as it was distributed comes in; a manifest, a split of its groups into folds, and decoded
pixels by row go out. This room may not know of any model, nor of the run that it is read for, and it
never guesses a case.
"""
