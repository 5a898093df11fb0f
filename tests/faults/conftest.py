"""Fixtures of this shelf."""

from tests.processes import bench as bench
