"""Which method, what it costs, on which card, and what published claims about it are worth."""
