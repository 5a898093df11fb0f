"""Tensors in one process: how parameters are cut into shards, kept, stepped and bound."""
