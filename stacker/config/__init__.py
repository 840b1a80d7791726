"""What a user may set.

A YAML file and `--set` overrides come in; a `Config` goes out whose every value has a type, a bound and
a default, or all of its faults at once. No setting is used here: this room may not know of any image,
model or run.
"""
