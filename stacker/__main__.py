"""`python -m stacker` is the command `stacker`."""

from stacker.cli import main

main()
