"""Losses of preferences, as pure functions of log-probabilities and rewards.

Each takes one number per pair (P,) and returns the loss of each pair (P,), in float32. Log-probabilities
are sums over the tokens of an answer unless something else is said; a ratio is that of the model less
that of the reference, log p(y | x) - log p_ref(y | x). Formulas and names are those of TRL 1.16.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def dpo(chosen_ratio: Tensor, rejected_ratio: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta (chosen - rejected)) (Rafailov et al. 2023, equation 7)."""
    return -F.logsigmoid(beta * (chosen_ratio - rejected_ratio))


def ipo(chosen_ratio: Tensor, rejected_ratio: Tensor, beta: float) -> Tensor:
    """(chosen - rejected - 1 / (2 beta))^2 (Azar et al. 2023, equation 17).

    The ratios are means over the tokens of each answer, as the authors computed them.
    """
    return (chosen_ratio - rejected_ratio - 1 / (2 * beta)).square()


def kto(ratio: Tensor, desirable: Tensor, drift: Tensor, beta: float) -> Tensor:
    """1 - sigmoid(beta (ratio - drift)) of good answers, of bad ones with the sign turned round.

    Ethayarajh et al. 2024, equation 7; weights of both kinds are the caller's.

    Args:
        desirable: (P,) bool.
        drift: scalar, at least 0 and without gradient: the mean ratio of mismatched answers.
    """
    gain = ratio - drift
    return 1 - torch.sigmoid(beta * torch.where(desirable, gain, -gain))


def log_odds(chosen: Tensor, rejected: Tensor) -> Tensor:
    """log odds(chosen) - log odds(rejected), odds p / (1 - p) (Hong et al. 2024, equations 3 and 4).

    The log-probabilities, below 0, are means over the tokens of each answer.
    """
    return chosen - rejected - (_log1mexp(chosen) - _log1mexp(rejected))


def orpo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """-beta log sigmoid(log odds ratio), which is added to the likelihood of the chosen row (ibid.)."""
    return -beta * F.logsigmoid(log_odds(chosen, rejected))


def simpo(chosen: Tensor, rejected: Tensor, beta: float, gamma: float) -> Tensor:
    """-log sigmoid(beta (chosen - rejected) - gamma) (Meng et al. 2024, equation 6).

    The log-probabilities are means over the tokens of each answer.
    """
    return -F.logsigmoid(beta * (chosen - rejected - gamma / beta))


def reward(chosen: Tensor, rejected: Tensor, centering: float | None) -> Tensor:
    """-log sigmoid(chosen - rejected) of two rewards (Bradley and Terry 1952; Ouyang et al. 2022).

    Plus ``centering`` (chosen + rejected)^2, which keeps rewards around 0 (Eisenstein et al. 2023).
    """
    loss = -F.logsigmoid(chosen - rejected)
    return loss if centering is None else loss + centering * (chosen + rejected).square()


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, exact at both ends (Mächler 2012)."""
    near = x > -0.6931471805599453
    one = torch.log(-torch.expm1(torch.where(near, x, -1.0)))
    other = torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    return torch.where(near, one, other)
