"""The only place that knows grpc: messages to tasks and back, errors to status, health."""
