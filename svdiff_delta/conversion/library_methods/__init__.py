"""Read methods that are no LoRA, LoHa or LoKr through the libraries that own them, one small file each.

PEFT's or LyCORIS' own layer is put on a layer that holds the base's weight, the adapter's tensors are loaded by the
library's own loader, and the library merges them. No formula of a method stands here.
"""

from __future__ import annotations
