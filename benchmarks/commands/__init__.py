"""The benchmarks: each a module that says who takes part and what its tables show.

Nothing here imports torch before a command runs, so that `--help` is quick.
"""
