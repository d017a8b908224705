"""`python -m d4c`."""

from d4c.cli.main import main

main()
