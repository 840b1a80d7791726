"""The meta-learners, all with `fit` and `predict_proba`.

A table with named columns, labels, groups and weights come in; probabilities go out, and a file that is
no pickle. A learner may not know of runs, caches or feature blocks: a table that does not fit in memory
is read through `Matrix`.
"""
