"""The smallest set of edits of a script that stops a loss from reaching a part: found on its values, and tried."""
