"""The learning rule eventprop, a plugin of snn_rules."""
