"""The paper's experiments on the embedded base, and a report of what holds there: `make paper`."""
