"""The operating system: durable steps, file locks, forks, who a process is, the log.

In:       paths, descriptors, pids.
Out:      bytes on the disk, locks, and proofs of death.
Promise:  nothing here outlives a fork by accident; an identity that is not known is no proof.
Hot:      imports next to nothing, and nothing late.
"""
