"""Every picture, drawn with matplotlib and without a display.

What is to be seen comes in: epochs, scores, predictions, or a run whose images and cached maps are shown;
figures go out. This room may not fit anything, nor know of a stage: who calls decides what is drawn.
"""
