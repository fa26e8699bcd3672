"""Ways of seeing memory: live /proc, captures, raw files. Each yields the same typed map."""
