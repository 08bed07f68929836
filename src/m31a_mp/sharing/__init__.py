"""Sharing: past one machine. Each site shares its state in a store; anybody gathers the states of all.

In:       `metrics.json` of each site; a store, which is a directory or a Redis or Valkey server.
Out:      states in the store, and their sum.
Promise:  a site's newer state replaces its older one, so that nothing is counted twice, in whatever order and
          however often states are shared; a store that hangs or is gone slows nothing.
Cold:     may import anything.
"""
