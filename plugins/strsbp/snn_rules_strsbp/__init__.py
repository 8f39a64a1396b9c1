"""The learning rule ST-RSBP, a plugin of snn_rules."""
