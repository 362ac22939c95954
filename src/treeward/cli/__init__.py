"""The command line: parsing and printing. A command's module is imported when that command is called."""
