"""Bradley-Terry ratings from pairwise votes (Bradley and Terry 1952; §4.1, Fig. 4).

P(i beats j) = exp(r_i) / (exp(r_i) + exp(r_j)). A vote's outcome is 1 for the first of the two, 0 for the second,
½ for a tie: half a win each. This file needs numpy only and can be copied out alone.
"""
import numpy as np

PRIOR = 0.5  # wins added to each side of every pair of sets that was compared (Anscombe's half)


def count_wins(first, second, outcome, n_sets, weight=None):
    """Votes -> wins (n_sets, n_sets), row over column.

    first, second: (V,) numbers of the sets compared; outcome: (V,) 1, 0 or ½; weight: (V,), default 1 each.
    """
    outcome = np.asarray(outcome, np.float64)
    weight = np.ones_like(outcome) if weight is None else np.asarray(weight, np.float64)
    wins = np.zeros((n_sets, n_sets))
    np.add.at(wins, (first, second), weight * outcome)
    np.add.at(wins, (second, first), weight * (1 - outcome))
    return wins


def fit(wins, prior=PRIOR, tolerance=1e-10, max_iterations=100_000):
    """Ratings by maximum likelihood, with the MM algorithm (Hunter 2004).

    Args:
        wins: (..., K, K), row over column; any number of tables at once.
        prior: wins added to both sides of every pair that was compared, so that a set which never wins (or never
            loses) has a finite rating. 0 = the plain estimate.

    Returns:
        (..., K) log-odds with mean 0: a difference of 1 means odds of e to 1.

    Raises:
        ValueError: some sets are not linked by any votes, or, with prior 0, a rating would be infinite.
    """
    wins = np.asarray(wins, np.float64)
    compared = wins + np.swapaxes(wins, -1, -2) > 0
    wins = wins + prior * compared
    _check_linked(wins.reshape(-1, *wins.shape[-2:]), prior)
    total, games = wins.sum(-1), wins + np.swapaxes(wins, -1, -2)
    strength = np.ones_like(total)
    for _ in range(max_iterations):
        pull = (games / (strength[..., :, None] + strength[..., None, :])).sum(-1)
        new = total / pull
        new /= np.exp(np.log(new).mean(-1, keepdims=True))
        change = np.abs(np.log(new / strength)).max()
        strength = new
        if change < tolerance:
            return np.log(strength)
    raise ValueError(f"the ratings did not settle in {max_iterations} iterations: add votes, or a larger prior")


def _check_linked(tables, prior):
    """ValueError unless every set is linked to every other by wins, directly or over others, in every table."""
    k = tables.shape[-1]
    reach = (tables > 0) | np.eye(k, dtype=bool)
    for _ in range(k.bit_length()):  # paths twice as long each time
        reach = reach.astype(np.float32) @ reach.astype(np.float32) > 0
    if not reach.all():
        _, i, j = np.argwhere(~reach)[0]
        cause = "are not linked by any votes"
        if not prior:
            cause = "leave a rating infinite: one never wins against the other, and the prior is 0"
        raise ValueError(f"sets number {i + 1} and {j + 1} {cause}: add votes between them")


def win_shares(wins):
    """(K, K): the share of comparisons that the row won against the column (Fig. 4); NaN where there were none."""
    games = wins + wins.T
    return np.divide(wins, games, out=np.full_like(games, np.nan), where=games > 0)


def bootstrap(first, second, outcome, voter, pair, n_sets, resamples=1000, level=0.95, seed=0, prior=PRIOR):
    """Intervals of the ratings that allow for voters and pairs of images each being a sample.

    Voters and pairs are drawn with replacement, independently of one another; a vote counts as often as its voter
    times as its pair is drawn (Owen 2007, the pigeonhole bootstrap). A single voter, or pair, is not resampled.

    Args:
        first, second, outcome: as for `count_wins`. voter, pair: (V,) numbers from 0.

    Returns:
        (n_sets, 2) ends of the `level` interval.
    """
    rng = np.random.default_rng(seed)
    # every comparison made keeps its prior, drawn or not: so every resample has finite ratings
    compared = count_wins(first, second, outcome, n_sets)
    floor = 1e-9 * (compared + compared.T > 0)
    tables = np.empty((resamples, n_sets, n_sets))
    for i in range(resamples):
        weight = np.ones(len(outcome))
        for unit in (voter, pair):
            n = int(np.max(unit)) + 1
            if n > 1:
                weight *= np.bincount(rng.integers(n, size=n), minlength=n)[unit]
        tables[i] = count_wins(first, second, outcome, n_sets, weight) + floor
    tail = (1 - level) / 2
    return np.quantile(fit(tables, prior, tolerance=1e-6), [tail, 1 - tail], axis=0).T
