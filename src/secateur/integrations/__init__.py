"""How other libraries load what Secateur writes."""
