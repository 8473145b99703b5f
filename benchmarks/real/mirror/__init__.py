"""What it costs to read a registry through a mirror: time, memory, and bytes of the registry."""
