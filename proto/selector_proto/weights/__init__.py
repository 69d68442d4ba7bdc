"""How weights travel from a trainer to its sidecars: what is stored, and the transports that carry it."""
