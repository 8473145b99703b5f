"""Models of other ways to distribute a content, on the same simulated network."""
