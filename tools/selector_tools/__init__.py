"""The `selector` command and the demo. Imports every other package; nothing imports it."""
