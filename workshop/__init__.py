"""Makes what ships: the embedded model, the study, the executed notebooks and figures. Nothing imports it."""
