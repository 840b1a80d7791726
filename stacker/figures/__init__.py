"""Every picture, by matplotlib and without a display.

What is to be seen comes in: epochs, scores, predictions, or a run with its images and cached maps;
figures go out. This room may not fit anything, nor know of a stage: who calls decides what is drawn.
"""
