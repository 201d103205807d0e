"""Evaluation: how well edits take, what they cost, and how other editors do."""
