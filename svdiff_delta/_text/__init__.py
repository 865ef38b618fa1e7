"""Text that is shown: control characters escaped, tokens struck out, markup made inert."""
