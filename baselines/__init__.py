"""What SEIGAN is compared with, each a method that `python train.py --method NAME` trains (see running/methods.py)."""
