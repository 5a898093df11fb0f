"""Measurements against what else there is, interleaved in one run. Not part of the package.

Run from the root of the repository: `python -m benchmarks --help`.

`cli` says what to measure and for whom, `harness` takes turns, `contenders` are
what is measured (each a group of processes, `processes` and `member`), `workload`
is what they work on, `results` and `report` make the tables.
"""
