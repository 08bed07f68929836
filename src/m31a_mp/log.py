"""The library's log: silent unless the program wants to hear it."""

import logging

logger = logging.getLogger("m31a_mp")
logger.addHandler(logging.NullHandler())
