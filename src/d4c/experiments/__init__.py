"""Studies that need several stages: what the paper's readers, and ours, want to know."""
