"""Kinds: every kind of record, declared once, and the types that the declarations consist of.

In:       the arguments of a `record_*` method, and JSON of any writer.
Out:      checked values; names encoded for a line; the tables and lists that records add up to.
Promise:  wrong arguments raise at once; totals do not depend on the order of records.
Hot:      `checks`, which recording needs. Only merging and inspection need the rest. Start reading at
          `catalog`.
"""
