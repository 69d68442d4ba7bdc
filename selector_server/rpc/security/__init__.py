"""Who may call, and through which door: TLS and tokens from files that may be rotated, and unix sockets."""
