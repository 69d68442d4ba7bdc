"""The losses that candidates are compared by: one table, by name.

To add a loss, write a subclass of LossScores in a file of its own and give it a line in `Loss`, name it in the
contract (`enum Loss` in selector.proto), and hold it against a literal implementation in tests/sampling. Requests,
bundles and shards know it by the name from then on.
"""

from enum import Enum

from selector_server.sampling.losses.base import LossScores, OpenScores, OwnScores, RunningScores
from selector_server.sampling.losses.sigmoid import SigmoidScores
from selector_server.sampling.losses.softmax import SoftmaxScores

__all__ = ["Loss", "LossScores", "OpenScores", "OwnScores", "RunningScores"]


class Loss(Enum):
    """The contrastive loss whose terms are compared.

    Its value is its name in bundles and in replies, and the contract calls it LOSS_ and the member's name. `running`
    is the class that computes it.
    """

    _value_: str
    running: type[LossScores]

    SIGMOID = "sigmoid", SigmoidScores
    SOFTMAX = "softmax", SoftmaxScores

    # The default is for type checkers alone: a member is looked up by its value, as in Loss("sigmoid").
    def __new__(cls, value: str, running: type[LossScores] = LossScores) -> "Loss":
        loss = object.__new__(cls)
        loss._value_ = value
        loss.running = running
        return loss
