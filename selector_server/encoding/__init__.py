"""From candidates to embeddings: bundles, ONNX Runtime sessions, weights as graph inputs, preprocessing."""
