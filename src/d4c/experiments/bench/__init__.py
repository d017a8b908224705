"""`d4c bench`: speed, memory, size and error of graphs, measured side by side.

Import the module that is meant: what runs in the measuring processes (`worker`, `session`) loads no torch.
"""
