"""`python -m server.cli`: the same as the console script `kerf`."""

from server.cli import main

main()
