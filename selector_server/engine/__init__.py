"""From a request to its result: `Engine.select` admits, prepares, waits for weights, scores and draws."""
