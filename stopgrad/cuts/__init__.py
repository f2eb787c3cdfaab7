"""The switch: where a gradient is stopped, and how."""
