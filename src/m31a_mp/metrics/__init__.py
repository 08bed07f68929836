"""Merging: the owner folds sealed journals into `metrics.json`.

In:       sealed journals, and the `metrics.json` of before.
Out:      `metrics.json`, replaced as a whole, and `journal.rejected.ndjson`.
Promise:  each record counts once, whatever step a process died in, and the file survives a power cut.
Cold:     imports what it likes.
"""
