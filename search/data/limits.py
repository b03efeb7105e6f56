"""How much a data set may be: far above what fits into memory here, and far below what a hostile file can claim."""

from __future__ import annotations

MAX_IMAGES = 2_000_000
MAX_CLASSES = 100_000
MAX_CLASS_NAME_CHARS = 200
MAX_IMAGE_FILE_BYTES = 64 << 20
MAX_PIXELS = 64 << 20
MAX_DECODED_BYTES = 16 << 30

#: Images hardly deflate, and even digits on black ground by less than 20: a file that unpacks to more than this and by
#: this factor is a bomb.
MAX_UNPACKING_RATIO = 50
SMALL_BYTES = 64 << 20
