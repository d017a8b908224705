"""An exported folder at work, without torch."""
