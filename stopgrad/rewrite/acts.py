"""What rewritten code calls in the place of what stood there."""

from __future__ import annotations
