"""The subcommands: one module each, which parses options, makes one library call, and prints."""
