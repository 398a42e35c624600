"""What decodes: models in memory, their proof, and answers on their way. Used by processes that
have torch."""
