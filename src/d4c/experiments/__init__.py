"""Studies that need several stages or many runs."""
