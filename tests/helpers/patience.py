"""How long tests wait for what must come, however busy the machine is: no bound on speed, only an end to what hangs."""

PATIENCE_S = 600.0
