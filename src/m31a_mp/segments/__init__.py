"""Segments: each process stores its records in mapped files of its own.

In:       lines from `record_*`.
Out:      batches in the journal; the first records of a process as lines.
Promise:  a record whose call returned survives its process; the call waits for no other process.
Hot:      imports very little, and nothing late.
"""
