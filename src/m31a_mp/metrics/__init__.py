"""Merging: the owner folds sealed journals into `metrics.json`.

In:       sealed journals, and the previous `metrics.json`.
Out:      `metrics.json`, replaced as a whole, and `journal.rejected.ndjson`.
Promise:  each record counts once, in whatever step a process dies, and the file survives a power cut.
Cold:     may import anything.
"""
