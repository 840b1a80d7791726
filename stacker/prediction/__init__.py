"""What the whole stack says of new images, and how it travels.

A run or a pack and pictures come in; a row for each image and each case goes out, or a pack with a model
card. Predicting may not need the images, the manifest or the caches of the run: a pack has none.
"""
