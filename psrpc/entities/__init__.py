"""The entity pipeline: people, organizations and locations in documents."""
