"""The rule that was measured best, for requests that leave the choice to the server (docs/adr/0025)."""

from selector_proto.v1 import selector_pb2 as pb

from selector_server.rpc.read_rule import loss_of
from selector_server.sampling import Loss

GAIN, PREFILTER = 1.0, 2.5


def completed(selection: pb.Selection, models_loss: Loss, cached: bool) -> pb.Selection:
    """The selection with this rule in the place of what it leaves unset, if it asks for that: joint, pairs judged by
    the reference alone, gain 1, and a prefilter where losses can be known, which a server may have `cached` by ids. One
    that names a policy or another criterion stays as it is, and so does one whose loss is not sigmoid, or whose
    candidates come as losses: nothing was measured there. Raises InvalidRequest."""
    kind = selection.WhichOneof("candidates")
    learnability = selection.criterion in (pb.CRITERION_UNSPECIFIED, pb.CRITERION_LEARNABILITY)
    if not selection.recommended or selection.policy or not learnability or kind == "losses":
        return selection
    if loss_of(selection, models_loss) is not Loss.SIGMOID:
        return selection
    whole = pb.Selection()
    whole.CopyFrom(selection)
    if selection.pair_criterion == pb.CRITERION_UNSPECIFIED:
        whole.pair_criterion = pb.CRITERION_EASY_REFERENCE
    if not selection.HasField("gain"):
        whole.gain = GAIN
    by_cache = cached and selection.HasField("sample_ids")
    known = by_cache or kind == "embeddings" or selection.samples.HasField("reference")
    if known and not selection.HasField("prefilter"):
        whole.prefilter = PREFILTER
    return whole
