"""Looking: what a session adds up to, how it is, whether its files are sound.

In:       all files of a session.
Out:      metrics, a status, findings.
Promise:  a look changes nothing and stops nobody; it sees every record whose call returned before.
Cold:     imports what it likes.
"""
