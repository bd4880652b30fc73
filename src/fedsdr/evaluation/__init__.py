"""How good the answers are: metrics, one model on one client, all results, intervals."""
