"""The search for a recipe, with Optuna.

The development cases of a run and `tune.space` come in; the config with the best recipe goes out.
Trainings go through stage one's own loop, which may not know of this room, and the search may not look
at test cases.
"""
