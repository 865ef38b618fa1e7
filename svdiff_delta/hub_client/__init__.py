"""Reading from the Hub: names and revisions, downloads within limits, errors in one form."""
