"""Measurements: each module is a command, `python -m benchmarks.NAME --help`.

step (time and arithmetic of a training step), quality (minutes until masks are useful), files (cutting, reading and
evaluating crops), attack (broken files, races), drawn (other drawn sets), opencv (GrabCut and two fills, which needs
opencv), literal (the step, one equation at a time).
"""
