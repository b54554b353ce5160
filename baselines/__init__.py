"""What SEIGAN is compared with, each a method that `python train.py --method NAME` trains (see running/methods.py).

nocycle, supervised and boxes are parts of SEIGAN. The neighbours learn without boxes (docs/neighbours.md): neighbour is
what they share, redo (with redo_networks), perturbgan (with stylegan), comgan and dscomgan (with comgan_networks).
"""
