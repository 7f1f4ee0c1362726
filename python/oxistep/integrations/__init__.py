"""What other packages have to be told of oxistep, in one call each.

Importing it imports neither torch nor the packages; a function imports the one that it is for.
"""

from oxistep.integrations._timm import register_timm

__all__ = ["register_timm"]
