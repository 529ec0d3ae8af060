"""Holds setting 0: the experiment on linear models, where much is known.

`problem.py` says what is asked and labelled, `training.py` trains and has the
closed form, `figure.py` draws, `__main__.py` makes a run directory.
"""
