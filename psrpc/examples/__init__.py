"""Programs to read and to run: `python -m psrpc.examples.returned`, or `gathered`."""
