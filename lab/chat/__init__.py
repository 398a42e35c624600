"""Talk to the base and to results, on equal terms."""
