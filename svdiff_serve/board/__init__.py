"""The board: a page on which people mix deltas with sliders, and what it asks the server."""
