"""Inspection: the metrics of a session, its status, and a check of its files.

In:       all files of a session.
Out:      metrics, a status, findings.
Promise:  an inspection changes nothing and blocks no one; it sees every record whose call returned before.
Cold:     may import anything.
"""
