"""Bradley-Terry ratings from pairwise votes (Bradley and Terry 1952; §4.1, Fig. 4).

P(i beats j) = exp(r_i) / (exp(r_i) + exp(r_j)). A vote's outcome is 1 for the first of the two, 0 for the second,
½ for a tie: half a win each. This file and clustered.py need numpy only and can be copied out together.
"""
import numpy as np

from evaluation.clustered import student, two_way

PRIOR = 0.5  # wins added to each side of every pair of sets that was compared (Anscombe's half)


def count_wins(first, second, outcome, n_sets):
    """Votes -> wins (n_sets, n_sets), row over column.

    first, second: (V,) numbers of the sets compared; outcome: (V,) 1, 0 or ½.
    """
    outcome, wins = np.asarray(outcome, np.float64), np.zeros((n_sets, n_sets))
    np.add.at(wins, (first, second), outcome)
    np.add.at(wins, (second, first), 1 - outcome)
    return wins


def fit(wins, prior=PRIOR, tolerance=1e-10, max_iterations=100_000):
    """Ratings by maximum likelihood, with the MM algorithm (Hunter 2004).

    Args:
        wins: (K, K), row over column.
        prior: wins added to both sides of every pair that was compared, so that a set which never wins (or never
            loses) has a finite rating. 0 = the plain estimate.

    Returns:
        (K,) log-odds with mean 0: a difference of 1 means odds of e to 1.

    Raises:
        ValueError: some sets are not linked by any votes, or, with prior 0, a rating would be infinite.
    """
    wins = np.asarray(wins, np.float64)
    wins = wins + prior * (wins + wins.T > 0)
    _check_linked(wins, prior)
    total, games = wins.sum(1), wins + wins.T
    strength = np.ones_like(total)
    for _ in range(max_iterations):
        new = total / (games / (strength[:, None] + strength)).sum(1)
        new /= np.exp(np.log(new).mean())
        change = np.abs(np.log(new / strength)).max()
        strength = new
        if change < tolerance:
            return np.log(strength)
    raise ValueError(f"the ratings did not settle in {max_iterations} iterations: add votes, or a larger prior")


def _check_linked(wins, prior):
    """ValueError unless every set is linked to every other by wins, directly or over others."""
    k = len(wins)
    reach = (wins > 0) | np.eye(k, dtype=bool)
    for _ in range(k.bit_length()):  # paths twice as long each time
        reach = reach.astype(np.float32) @ reach.astype(np.float32) > 0
    if not reach.all():
        i, j = np.argwhere(~reach)[0]
        cause = "are not linked by any votes"
        if not prior:
            cause = "leave a rating infinite: one never wins against the other, and the prior is 0"
        raise ValueError(f"sets number {i + 1} and {j + 1} {cause}: add votes between them")


def win_shares(wins):
    """(K, K): the share of comparisons that the row won against the column (Fig. 4); NaN where there were none."""
    games = wins + wins.T
    return np.divide(wins, games, out=np.full_like(games, np.nan), where=games > 0)


def intervals(first, second, outcome, voter, pair, n_sets, level=0.95, prior=PRIOR):
    """Intervals of the ratings that allow for voters and pairs of images each being a sample.

    Sandwich estimate with votes clustered by voters and by pairs, see `clustered.two_way`; a single voter, or pair,
    counts as no sample. Deviation: the paper gives none. Of a set that never wins, or never loses, it is too short:
    nothing shows what could have happened.

    Args:
        first, second, outcome: as for `count_wins`. voter, pair: (V,) numbers from 0.

    Returns:
        (n_sets, 2) ends of the `level` interval.
    """
    first, second, outcome = np.asarray(first), np.asarray(second), np.asarray(outcome, np.float64)
    wins = count_wins(first, second, outcome, n_sets)
    ratings = fit(wins, prior)
    chance = (1 + np.tanh((ratings[:, None] - ratings) / 2)) / 2  # of the row against the column
    games = wins + wins.T
    bend = (games + 2 * prior * (games > 0)) * chance * chance.T
    information = np.diag(bend.sum(1)) - bend
    # what is added keeps the ratings' mean, of which votes tell nothing, at 0
    inverse = np.linalg.pinv(information + np.trace(information) / n_sets, hermitian=True)
    surprise = (outcome - chance[first, second])[:, None]
    variance, df = two_way(surprise * (inverse[first] - inverse[second]), voter, pair)
    half = np.sqrt(variance) * [student(level, n) for n in df]
    return np.stack([ratings - half, ratings + half], 1)
