"""Fakes: stand-ins for the outside world that tests control."""
