"""Exports: the metrics of sessions in the forms of other programs, and as a page for people.

In:       `SessionMetrics`; of Prometheus the directory of sessions, which is looked at as by `show`.
Out:      a page of HTML (`report`), and the formats of Prometheus (`prometheus`) and OpenTelemetry (`otlp`).
Promise:  a number that is not known is never shown as a zero, foreign names stay text, and a receiver that is
          slow or gone harms no session.
Cold:     may import anything; each module needs an extra of its own.
"""
