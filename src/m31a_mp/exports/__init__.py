"""Exports: the metrics of a session in the forms of other programs, and as a page for people.

In:       `SessionMetrics`, and nothing else of a session.
Out:      a page of HTML (`report`).
Promise:  a number that is not known is never shown as a zero, and foreign names stay text.
Cold:     may import anything; each module needs an extra of its own.
"""
