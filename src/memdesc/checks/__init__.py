"""What was checked on which kernel: scores against real kernels, kept and shown as a table."""
