"""The models of this server and what it scores with them. Either model may be missing, and so may the cache."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selector_server.encoding.model import Model, Weights
from selector_server.encoding.reference_cache import ReferenceCache
from selector_server.engine.arrays import Floats, ModelEmbeddings
from selector_server.engine.request import Request
from selector_server.engine.task import ServedWeights, Task
from selector_server.errors import NotPossible, StaleWeights
from selector_server.sampling import Embedded, PairScores
from selector_server.weights.freshness import Breach, WhenStale
from selector_server.weights.versions import SyncState, Version, Versions


@dataclass(frozen=True)
class SamplerSettings:
    """`tile_bytes` bounds the sampler's memory, None suits the device; `fused` sums strips by the GPU kernel."""

    tile_bytes: int | None = None
    fused: bool = False


class Models:
    """`versions` holds the learner's weights; it is None without a learner."""

    def __init__(
        self,
        device: torch.device,
        learner: Model | None,
        reference: Model | None,
        versions: Versions[Weights] | None,
        cache: ReferenceCache | None,
        sampler: SamplerSettings,
    ) -> None:
        self.device, self.learner, self.reference, self.cache = device, learner, reference, cache
        self._versions, self._sampler = versions, sampler

    def check(self, task: Task[Any]) -> None:
        """Raises NotPossible for what this server can never do, and StaleWeights for a task that does not wait. It is
        cheap, and called before the task is queued."""
        if task.encoded:
            rule, brought = task.rule, task.candidates.reference_brought
            if rule.needs_learner and self.learner is None:
                raise NotPossible("samples", rule.name, "needs a learner; start the server with --learner")
            if rule.needs_reference and not brought and self.reference is None:
                raise NotPossible("samples", rule.name, "needs a reference; start it with --reference")
            if rule.prefilter is not None and not brought and self.cache is None:
                limit = "knows no loss before it encodes; start the server with --cache, or send reference embeddings"
                raise NotPossible("prefilter", rule.prefilter, limit)
        breach = self._breach(task, self._current())
        if breach is None or breach.action is WhenStale.SERVE:
            return
        # Without a source nothing newer will ever come.
        if breach.action is WhenStale.REFUSE or self._versions is None or self._versions.status.state is SyncState.OFF:
            raise breach.error(self._why_not_newer())

    def awaited(self, task: Task[Any], waited: float) -> StaleWeights | None:
        """None unless the task must wait for newer weights; then what to say if it cannot wait any longer."""
        breach = self._breach(task, self._current())
        if breach is None or breach.action is not WhenStale.WAIT:
            return None
        return breach.error(self._why_not_newer(), waited)

    def weights_for(self, task: Task[Any]) -> tuple[Weights, ServedWeights]:
        """The learner's weights, to be taken once: one version scores the whole request, whatever arrives meanwhile.
        Raises StaleWeights if they aged while the task was queued."""
        version = self._current()
        assert version is not None
        breach = self._breach(task, version)
        if breach is not None and breach.action is not WhenStale.SERVE:
            raise breach.error(self._why_not_newer())
        step = task.freshness.trainer_step
        lag = None if step is None else step - version.trainer_step
        age = version.age_seconds()
        return version.weights, ServedWeights(version.version, version.trainer_step, age, lag, breach is not None)

    def pairs(
        self,
        task: Task[Any],
        learner: Embedded | None,
        reference: Embedded | None,
        request: Request,
        learner_losses: Tensor | None = None,
    ) -> PairScores:
        """Scores of all pairs of candidates by the task's rule."""
        rule = task.rule
        return PairScores(
            rule.criterion,
            learner,
            reference,
            rule.loss,
            self._sampler.tile_bytes,
            self._sampler.fused,
            check=request.check,
            pair_criterion=rule.pair_criterion,
            learner_losses=learner_losses,
            max_similarity=rule.max_similarity,
            recent=None if task.recent is None else self.embedded(task.recent),
        )

    def embedded(self, model: ModelEmbeddings) -> Embedded:
        """The embeddings on the device, normalised."""
        image, text = (self.on_device(side) for side in (model.image, model.text))
        return Embedded.normalise(image, text, model.scale, model.bias)

    def on_device(self, array: Floats) -> Tensor:
        """A copy of the array: request arrays are views into a read-only payload, which torch must not share."""
        return torch.from_numpy(array.copy()).to(self.device)

    def _current(self) -> Version[Weights] | None:
        return None if self._versions is None else self._versions.current

    def _breach(self, task: Task[Any], version: Version[Weights] | None) -> Breach | None:
        return task.freshness.breach(version, task.needs_weights)

    def _why_not_newer(self) -> str:
        return "no learner" if self._versions is None else self._versions.status.last_error
