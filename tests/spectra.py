"""What the tests of the eigensolver share: the best of all eigenvalues, and what a set of intervals claims."""

import numpy as np


def best(values, k, which):
    """Choose the k best of all real eigenvalues, ascending; under LM ascending by magnitude, which ties share."""
    ordered = np.sort(values)
    if which == "LA":
        return ordered[len(ordered) - k :]
    if which == "SA":
        return ordered[:k]
    if which == "LM":
        return np.sort(np.abs(ordered))[len(ordered) - k :]
    return np.r_[ordered[: k // 2], ordered[len(ordered) - (k - k // 2) :]]


def found(pairs):
    """Bring a result into the order of `best`."""
    return np.sort(np.abs(pairs.values) if pairs.which == "LM" else pairs.values)


def broken_groups(values, bounds, exact, slack=0.0):
    """List the groups of overlapping intervals that hold fewer eigenvalues than values: there must be none."""
    groups = []
    for i in np.argsort(values - bounds):
        low, high = values[i] - bounds[i], values[i] + bounds[i]
        if groups and low <= groups[-1][1]:
            groups[-1][1:] = max(groups[-1][1], high), groups[-1][2] + 1
        else:
            groups.append([low, high, 1])
    counts = [int(((exact >= low - slack) & (exact <= high + slack)).sum()) for low, high, _ in groups]
    return [(*group, count) for group, count in zip(groups, counts, strict=True) if count < group[2]]


def ranked_distances(pairs, exact, which):
    """Measure how far each value is from the exact one of its rank."""
    if which == "LM":
        order = np.argsort(-np.abs(pairs.values), kind="stable")
        distances = np.abs(np.abs(pairs.values[order]) - np.sort(np.abs(exact))[::-1][: len(order)])
        return distances[np.argsort(order)]
    halves = {"LA": (0, len(pairs)), "SA": (len(pairs), 0), "BE": (len(pairs) // 2, len(pairs) - len(pairs) // 2)}[
        which
    ]
    exact = np.sort(exact)
    chosen = np.r_[exact[: halves[0]], exact[len(exact) - halves[1] :]]
    order = np.argsort(pairs.values, kind="stable")
    distances = np.empty(len(order))
    distances[order] = np.abs(pairs.values[order] - chosen)
    return distances
