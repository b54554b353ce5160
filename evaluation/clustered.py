"""Standard errors of figures whose observations come in two kinds of groups at once: votes in voters and in pairs of
images, masks in photographs and in runs. This file needs numpy only and can be copied out alone.
"""
import numpy as np


def two_way(scores, *units):
    """Variances that are clustered two ways (Cameron, Gelbach and Miller 2011): those clustered by either unit added
    up, less those of independent observations, which both hold. Where that is less than one of the three, or negative,
    as by chance or where the members of a group differ more than others, the largest of the three stands.

    Args:
        scores: (N, K), what each observation adds to the error of each of K figures.
        units: each (N,) group numbers from 0. Those with a single group tell nothing and are passed over.

    Returns:
        Variances (K,), and their degrees of freedom (K,) for `student` (Satterthwaite).
    """
    scores = np.asarray(scores, np.float64)
    n = len(scores)
    independent = np.square(scores).sum(0) * n / max(n - 1, 1)
    parts, freedom = [], []
    for unit in units:
        groups = int(np.max(unit)) + 1
        if groups > 1:
            sums = np.stack([np.bincount(unit, column, groups) for column in scores.T], 1)
            parts.append(np.square(sums).sum(0) * groups / (groups - 1))
            freedom.append(groups - 1)
    if not parts:
        parts, freedom = [independent], [max(n - 1, 1)]
    total = np.max([sum(parts) - independent * (len(parts) - 1), independent, *parts], 0)
    spread = sum(np.square(part) / df for part, df in zip(parts, freedom, strict=True))
    df = np.divide(np.square(total), spread, out=np.ones_like(total), where=spread > 0)
    return total, np.clip(df, min(freedom), max(n - 1, 1))


def photographs(rows):
    """The number of each row's photograph, (N,) from 0, in the order in which they come first."""
    numbers = {}
    return np.array([numbers.setdefault(row.get("photograph") or row["stem"], len(numbers)) for row in rows], int)


def student(level, df, cells=20_000):
    """The half width, in standard errors, of a `level` interval with df >= 1 degrees of freedom, of Student's t."""
    # with t = √df·tan(a) the density is cos(a)^(df-1), on a finite range
    edges = np.linspace(0, np.pi / 2, cells + 1)
    mass = np.cumsum(np.cos((edges[1:] + edges[:-1]) / 2) ** (df - 1))
    return float(np.sqrt(df) * np.tan(np.interp(level, np.append(0, mass / mass[-1]), edges)))
