"""Processes on the modelled machine: address spaces, faults, fork, pins, files, writeback.

A folder per part, a module per subsystem of the kernel, named as the kernel names it.  Control
is plain Python; loops over page-table entries are compiled.  `memdesc.mm.kernel.Kernel` is the
way in.
"""
