"""Every kind of record, declared once, and what follows from the declarations.

In:       the arguments of a `record_*` method, and JSON of any writer.
Out:      the lines of records; checked values; the tables and lists that records add up to.
Promise:  wrong arguments raise at once; the order of records does not show in what they add up to.
Hot:      `_lines` and `checks`, which a record needs. The rest is for those who merge and look; of that,
          `catalog` is the place to begin.
"""
