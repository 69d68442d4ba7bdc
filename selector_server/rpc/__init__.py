"""The only place that knows grpc. It turns messages into tasks, results into messages and errors into status."""
