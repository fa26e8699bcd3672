"""Real kernels in virtual machines: boot one, run a program in it, record it, dump it.

`guest.Guest` is the machine, `record.record` plants memory of every kind in one and brings
back what its kernel said about it.  Nothing is installed, no network and no file system of
this machine is visible inside, and every guest ends with the process that started it.
"""
