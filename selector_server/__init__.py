"""The sidecar: receives super-batches, scores them with learner and reference, picks jointly."""
