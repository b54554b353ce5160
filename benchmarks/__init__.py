"""Measurements: each module is a command, `python -m benchmarks.NAME --help`.

step (time and arithmetic of a training step), files (cutting, reading and evaluating crops), drawn (other drawn sets),
grabcut (GrabCut from the box, which needs opencv), literal (the step written equation by equation).
"""
