"""How fast the parts are, measured on the machine at hand."""
