"""Big swarms on the simulator: `python -m benchmarks.scale`."""
