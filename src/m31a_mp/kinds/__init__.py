"""The fields of a record: their values and checks; and the reading of others' JSON.

In:       the arguments of a `record_*` method, and JSON of any writer.
Out:      values that are right, names as they stand in a line; else an error that says what is wrong.
Promise:  wrong arguments raise at once; lack of memory is no damage.
Hot:      `checks`, which a record needs. `json` is for those who merge.
"""
