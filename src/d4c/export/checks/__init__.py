"""What `verify` looks at: kernels, saturation, constants, exactness, agreement; each check gives rows of one table."""

from d4c.export.checks.row import Row

__all__ = ["Row"]
