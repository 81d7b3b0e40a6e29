"""A stand-in for an NVIDIA GPU, for a torch that was built without CUDA.

It has host memory for its own, and computes on the CPU. Like a GPU, it refuses operands that lie on
the host, tells pinned memory from other, runs short of memory where it is told to, and counts its
bytes, so that paths through a GPU can be tested, and measured for memory, where there is none.
Told not to compute, it takes memory for results and leaves them zero: a job of any size then ends
in minutes, and its largest memory is what a GPU would have needed, but for what kernels of
libraries take beside their results, and for gaps between blocks.

It knows no compiled kernels and no CUDA graphs (Triton's kernels run in Triton's interpreter), and
nothing on it is asynchronous: that code works on it says nothing about missing synchronisation.

`begin()` comes before torch is imported, in a process that is used for nothing else.
"""
