"""Policies: the features of training, each a value with pure functions.

`policy.Policy` says what a training step asks of them. One that is off is not in the step's list.
"""
