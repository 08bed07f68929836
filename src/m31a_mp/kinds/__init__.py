"""Every kind of record, declared once, and what follows from the declarations.

In:       the arguments of a `record_*` method, and JSON of any writer.
Out:      checked values; names as they stand in a line; the tables and lists that records add up to.
Promise:  wrong arguments raise at once; the order of records does not show in what they add up to.
Hot:      `checks`, which a record needs. The rest is for those who merge and look; of that, `catalog` is the
          place to begin.
"""
