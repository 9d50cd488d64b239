"""Which parameters train: names, rules, freezing, adapters."""
