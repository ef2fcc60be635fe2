"""Commands that use a finished run: measure it, let it write, let it answer."""
