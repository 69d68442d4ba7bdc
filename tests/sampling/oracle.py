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


def softmax_terms(image, text, scale):
    """a s_ij, the only thing that the softmax loss depends on."""
    return scale * (image @ text.T)


def logsumexp(values):
    return np.logaddexp.reduce(values) if len(values) else None


def softmax_score(terms, i, chosen):
    """JEST Algorithm 3 for one model: -a s_ii, plus half the two log-sum-exps over the chosen, if any."""
    row, column = logsumexp(terms[i, chosen]), logsumexp(terms[chosen, i])
    return -terms[i, i] + (0.0 if row is None else 0.5 * (row + column))


def softmax_joint(weighted_terms, sizes, gain, noise, closed=()):
    """`weighted_terms` is [(weight, B x B terms), …]."""
    count = noise.shape[1]
    chosen: list[int] = []
    scores: list[float] = []
    for round_, size in enumerate(sizes):
        plain = np.array([sum(w * softmax_score(t, i, chosen) for w, t in weighted_terms) for i in range(count)])
        logits = gain * plain + noise[round_]
        logits[[*chosen, *closed]] = -np.inf
        order = sorted(range(count), key=lambda i: (-logits[i], i))[:size]
        chosen += order
        scores += [plain[i] for i in order]
    return np.array(chosen), np.array(scores)


def softmax_total(weighted_terms, picks):
    """Sum over picks of l(x_i | picks), Eq. 1."""
    return sum(w * sum(softmax_score(t, i, list(picks)) for i in picks) for w, t in weighted_terms)


def score_matrix(criterion, learner, reference):
    if criterion == "LEARNABILITY":
        return sigmoid_nll(*learner) - sigmoid_nll(*reference)
    if criterion == "EASY_REFERENCE":
        return -sigmoid_nll(*reference)
    if criterion == "HARD_LEARNER":
        return sigmoid_nll(*learner)
    raise AssertionError(criterion)


def joint(matrix, sizes, gain, noise, closed=()):
    """Algorithm 1 with its traps mended. `noise` [N, B] is Gumbel noise per round, zeros for top-k. What is `closed` is
    never chosen."""
    chosen: list[int] = []
    scores: list[float] = []
    for round_, size in enumerate(sizes):
        logits = np.full(len(matrix), -np.inf)
        plain = np.zeros(len(matrix))
        for i in range(len(matrix)):
            plain[i] = matrix[i, i] + matrix[chosen, i].sum() + matrix[i, chosen].sum()
            if i not in chosen and i not in closed:
                logits[i] = gain * plain[i] + noise[round_, i]
        order = sorted(range(len(matrix)), key=lambda i: (-logits[i], i))[:size]
        chosen += order
        scores += [plain[i] for i in order]
    return np.array(chosen), np.array(scores)


def total(matrix, picks):
    return matrix[np.ix_(picks, picks)].sum()
