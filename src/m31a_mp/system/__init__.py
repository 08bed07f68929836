"""The operating system: durable steps, file locks, forks, process identities, the log.

In:       paths, descriptors, pids.
Out:      bytes on the disk, locks, and proofs of death.
Promise:  no state outlives a fork by accident; an unknown identity is no proof.
Hot:      imports very little, and nothing late.
"""
