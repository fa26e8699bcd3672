"""userfaultfd: faults that a process answers."""
