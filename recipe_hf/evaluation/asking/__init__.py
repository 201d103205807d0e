"""Asking: what is asked about which facts, and what the language model says, one code for all editors."""
