"""What training cost and gained: measured against the base."""
