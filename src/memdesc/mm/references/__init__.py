"""References to pages that processes and devices take."""
