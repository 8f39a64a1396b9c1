"""The learning rule TSSL-BP, a plugin of snn_rules."""
