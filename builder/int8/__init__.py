"""int8: layers, placement, and the search under an accuracy budget."""
