"""Every kind of record: its fields with their checks, its line, and what it adds to.

In:       the arguments of a `record_*` method, or a line of JSON of any writer.
Out:      the line that a process writes, and the same record added to the totals.
Promise:  wrong arguments raise at once; the order of records does not show in the result.
Hot:      `checks`, which a record needs. `events` is for those who merge.
"""
