"""The planner process: everything that needs torch or transformers but no weights."""
