"""The learning rule eprop, a plugin of snn_rules."""
