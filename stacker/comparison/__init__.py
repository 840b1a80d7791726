"""Whether the maps add anything.

A run with filled caches comes in; a leaderboard of meta-learners by feature blocks goes out, beside base
models, rules and controls. Entries are fitted as stage three fits them, which may not know of this room:
nothing is fitted otherwise because it is compared.
"""
