"""Grids, ranges and quantized layers; they know neither CLIP nor data."""
