"""The learning rule STDBP, a plugin of snn_rules."""
