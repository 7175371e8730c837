"""int8: where Q/DQ go, what each layer costs in accuracy, and the search for a graph inside a budget."""
