"""`python -m stacker` is the command `stacker`."""

from stacker.cli.main import main

main()
