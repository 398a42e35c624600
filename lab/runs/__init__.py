"""Runs on disk: their history, their state, how they start, stop and go on."""
