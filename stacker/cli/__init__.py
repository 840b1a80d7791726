"""The commands.

Arguments come in; tables or JSON on stdout go out, and an exit code. A command may not compute anything:
it opens a config or a run, calls one function and shows what that returns; what is heavy is imported
inside of it.
"""
