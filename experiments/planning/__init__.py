"""What a run will take, before it is begun: parameters, FLOPs, memory, tables, time on named hardware."""
