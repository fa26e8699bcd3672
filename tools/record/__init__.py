"""Record what real Linux kernels say about their memory, in a virtual machine."""
