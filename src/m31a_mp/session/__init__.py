"""A session: its directory and the paths in it, and the lease of its owner.

In:       a session's id and the directory of the sessions.
Out:      paths, and the right to merge.
Promise:  one owner at a time; a lease ends with its process.
Hot:      `paths`, which a record needs. `lease` is for owners.
"""
