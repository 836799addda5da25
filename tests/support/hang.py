"""How long a test waits for another process: a guard against one that hangs, which no loaded machine may reach."""

SECONDS = 900
