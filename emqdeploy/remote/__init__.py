"""Measuring on another machine over ssh: the system's own ssh with the user's configuration, nothing of it in here."""
