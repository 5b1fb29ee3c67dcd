"""The properties: one class each, one name each, and the monitor that feeds them."""
