"""Import what forked scripts need, as the process does that they are forked from."""

from support.forked import import_all

import_all()
