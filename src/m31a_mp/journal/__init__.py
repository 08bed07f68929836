"""The journal: batches and foreign lines on their way to `metrics.json`, appended under `journal.lock`.

In:       batches of the segments, the first records of each process, and lines that other programs append.
Out:      a sealed journal, and its items in order.
Promise:  a torn append loses no record, and damage loses only itself; record numbers reveal a repeated batch.
Hot:      imports very little, and nothing late. `reader` is the exception: only merging needs it.
"""
