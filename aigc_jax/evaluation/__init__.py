"""Scores of written text, each with the protocol that made it: whoever compares figures needs both."""
