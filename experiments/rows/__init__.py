"""Reading rows, intervals, tables and figures of them."""
