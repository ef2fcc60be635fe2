"""Training: from a configuration and its task to result.json.

    experiment  what is fixed before the first step: models, policies, optimizer, batches
    programs    the compiled steps, one for each size, length, kind of batch and precision
    trainer     what changes: the loop, the order of things between two steps, stopping and resuming

A step is step.py, on the objective of objective.py and the state of state.py; the optimizer is
optimizer.py, and what else happens in it are the policies of the package `policies`. A run leaves
behind what workdir, metrics, lines, recorder, checkpoint, results and closing write. Finished runs
are read by `finished.load`; certificate, shrink, imported and frozen start from there.
"""
