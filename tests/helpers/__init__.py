"""What tests share: small models, indexes and datasets, oracles, a browser. No test lives here."""
