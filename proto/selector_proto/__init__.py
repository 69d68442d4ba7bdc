"""What trainer and sidecar share: the contract's messages, tensors on the wire, and how weights travel."""

__version__ = "0.1.0"
