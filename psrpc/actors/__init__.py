"""Actors: any Python class in another process, called by message, one message at a time."""
