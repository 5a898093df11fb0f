"""`python -m psrpc`: the command line."""

from psrpc.cli import main

main()
