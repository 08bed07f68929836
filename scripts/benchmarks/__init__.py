r"""What `bench.py` is made of.

peers      m31a_mp and what it is compared with, behind the same few methods
measuring  what the measurements share
writing    measurements of writers             \
reading    of those who take in what they wrote | each runs in a fresh process
programs   of whole programs                   /
rows       the rows of the table: who takes part, and what is to be reached
report     what came of it, as a table and as JSON
"""
