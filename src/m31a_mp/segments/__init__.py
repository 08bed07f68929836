"""Segments: each process puts its records into files of its own, which it maps.

In:       lines from `record_*`.
Out:      batches in the journal.
Promise:  a record whose call returned survives its process, and waits for no other process.
Hot:      imports next to nothing, and nothing late.
"""
