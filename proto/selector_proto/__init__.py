"""What trainer and sidecar share: the contract's messages, tensors on the wire, the layout of weights in Redis."""

__version__ = "0.1.0"
