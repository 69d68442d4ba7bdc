"""JEST written as literally as possible in float64 numpy, with whole B x B matrices. Slow and obviously right.

Shares nothing with the code under test but the noise, which is an input here.
"""

import numpy as np


def log_sigmoid(x):
    return -np.logaddexp(0.0, -x)


def sigmoid_nll(image, text, scale, bias):
    """nll_ij = -log sigmoid(y_ij * logit_ij), y = +1 on the diagonal and -1 off it."""
    logits = scale * (image @ text.T) + bias
    y = 2 * np.eye(len(logits)) - 1
    return -log_sigmoid(y * logits)


def score_matrix(criterion, learner, reference):
    if criterion == "LEARNABILITY":
        return sigmoid_nll(*learner) - sigmoid_nll(*reference)
    if criterion == "EASY_REFERENCE":
        return -sigmoid_nll(*reference)
    if criterion == "HARD_LEARNER":
        return sigmoid_nll(*learner)
    raise AssertionError(criterion)


def joint(matrix, sizes, gain, noise):
    """Algorithm 1 with its traps mended. `noise` [N, B] is Gumbel noise per round, zeros for top-k."""
    chosen: list[int] = []
    scores: list[float] = []
    for round_, size in enumerate(sizes):
        logits = np.full(len(matrix), -np.inf)
        plain = np.zeros(len(matrix))
        for i in range(len(matrix)):
            plain[i] = matrix[i, i] + matrix[chosen, i].sum() + matrix[i, chosen].sum()
            if i not in chosen:
                logits[i] = gain * plain[i] + noise[round_, i]
        order = sorted(range(len(matrix)), key=lambda i: (-logits[i], i))[:size]
        chosen += order
        scores += [plain[i] for i in order]
    return np.array(chosen), np.array(scores)


def total(matrix, picks):
    return matrix[np.ix_(picks, picks)].sum()
