"""What commands share, and what stands around the steps of a training.

In reading order: options (types, defaults, devices, one-line errors), methods (what a method must have), checkpoint
(files that are whole and run no code), card (of weights that are shared), folder (a run's lock, log and checkpoints),
run (what happens beside the steps), watch (signals, skipped steps, collapsed masks, speed), origin (what a file says of
what made it), parallel (several
processes).
"""
