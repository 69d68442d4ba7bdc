"""What happens to a request between the wire and the device: admission, the worker's queue, the selection."""
