"""The journal: batches and foreign lines on their way to `metrics.json`, appended under `journal.lock`.

In:       batches of the segments, and lines that other programs append.
Out:      a sealed journal, and its items in order.
Promise:  a torn append costs nothing, and damage only itself; the numbers of a batch tell if it comes twice.
Hot:      imports next to nothing, and nothing late; but for `reader`, which is for those who merge.
"""
