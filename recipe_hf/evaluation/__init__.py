"""Evaluation: how well edits take, what they cost, and how other editors do.

`asking/` has the questions and puts them to a language model, `editors/` what edits it, `measuring/` the runs,
`reporting/` what is told of them. `inputs.py` says what tells runs apart, `records.py` keeps them.
"""
