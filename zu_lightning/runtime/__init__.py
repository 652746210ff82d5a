"""Files, processes, errors, time: what every package stands on."""
