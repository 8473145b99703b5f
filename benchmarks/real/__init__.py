"""Measurements of real processes on this machine, each beside something that everybody knows."""
