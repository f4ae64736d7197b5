"""The `mrcnn` command: one file a subcommand, which parses arguments, calls the library and prints."""

PROGRAM = "mrcnn"
