"""The settings of the nodes of a run."""

from __future__ import annotations

SETTINGS = {  # everything some ten times faster than by default, so that a run shows much
    "pulse_interval": 0.3,
    "pulse_deadline": 0.8,
    "node_ttl": 2.0,
    "leader_ttl": 1.5,
    "leader_margin": 0.3,
    "revoke_timeout": 2.0,
    "rebalance_interval": 1.0,
    "rebalance_after": 1.0,
    "moves_per_round": 0.5,
    "rejoin_grace": 3.0,
    "stall_resign_after": 1.0,
    "stall_after": 2.0,
    "stall_kill_after": 20.0,
    "work_stall_after": 5.0,
    "stop_timeout": 5.0,
    "stop_reserve": 1.5,
    "stop_fast": 1.0,
    "stop_hard": 7.0,
    "failure_pause": 0.5,
    "work_connections": 4,
    "control_connections": 2,
    "connect_timeout": 5.0,
    "acquire_timeout": 1.0,
    "statement_timeout": 8.0,
    "idle_transaction_timeout": 15.0,
    "leak_after": 1.0,
    "poll_interval": 0.2,
}
