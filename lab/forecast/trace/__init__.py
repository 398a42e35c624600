"""The shadow step: everything about it that needs torch. The web process stays out of here."""
