"""Measuring: trials, whole evaluations and comparisons of editors, general ability, time and memory."""
