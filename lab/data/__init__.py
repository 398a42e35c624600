"""Examples: where they come from, what shape they have, and how the model sees them."""
