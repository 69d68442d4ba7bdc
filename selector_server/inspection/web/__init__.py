"""The page: static files, and the answers of a Source over HTTP."""
