"""`python -m ltctl`."""

from ltctl.main import main

main()
