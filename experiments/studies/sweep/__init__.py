"""The search of settings: the space, the Optuna study, the Tune side, the result and its pictures."""
