"""Work on a GPU as CUDA graphs: how it is captured, and what is captured again and again on the same memory."""
