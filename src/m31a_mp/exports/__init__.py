"""Exports: the metrics of sessions for other programs that people look at.

In:       `SessionMetrics`, or the directory of sessions.
Out:      the formats of Prometheus and OpenTelemetry.
Promise:  an export changes nothing in a session, and a receiver that is slow or gone harms no session.
Cold:     may import anything. Each module needs the extra of its name.
"""
