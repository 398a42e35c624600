"""Runs side by side, on equal terms or with what makes them unequal."""
