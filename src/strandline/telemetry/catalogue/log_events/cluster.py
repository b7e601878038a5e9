"""What is logged of membership, leadership, work and the pulse."""

from __future__ import annotations

from strandline.telemetry.catalogue.log_event import LogEvent

ALL = (
    LogEvent("node_joined", "INFO", "node %(node)s joined as %(node_id)s"),
    LogEvent("leadership_won", "INFO", "node %(node)s leads, epoch %(epoch)d"),
    LogEvent("leadership_ended", "INFO", "node %(node)s no longer leads: %(reason)s"),
    LogEvent(
        "duties_taken_up_again",
        "WARNING",
        "node %(node)s takes up its duties as leader again",
        "They had ended by a fault of their own, told before this.",
    ),
    LogEvent("resign_asked", "INFO", "node %(node)s was asked to resign: %(reason)s"),
    LogEvent("drain_asked", "INFO", "node %(node)s was asked to drain: %(reason)s"),
    LogEvent("node_drained", "INFO", "node %(node)s is drained: %(count)d given away"),
    LogEvent(
        "node_evicted",
        "ERROR",
        "%(error)s",
        "The others have declared this node dead: it stops all work, then joins again or exits"
        " (`on_evicted`). Look for a blocked event loop or a cut network.",
        ("node", "reason"),
    ),
    LogEvent(
        "join_failed",
        "WARNING",
        "node %(node)s cannot join again yet: %(error)r",
        "It is tried again every `pulse_interval`.",
    ),
    LogEvent(
        "news_delayed",
        "WARNING",
        "node %(node)s %(task)s: %(error)s",
        "The database could not be reached meanwhile; the next round does it.",
    ),
    LogEvent("news_failed", "ERROR", "node %(node)s %(task)s", "A fault; please report it."),
    LogEvent(
        "leader_refused",
        "WARNING",
        "%(error)s; the duties of this term end here",
        "Another node leads by now. Nothing was written under the old epoch.",
        ("epoch",),
    ),
    LogEvent(
        "evictions_braked",
        "ERROR",
        "brake: most of %(present)d nodes are silent; these are declared dead unless they beat"
        " within another %(seconds)s s: %(nodes)s",
        "Most nodes falling silent at once is rather the fault of the network or the database.",
    ),
    LogEvent(
        "node_dead",
        "WARNING",
        "node %(node)s (%(node_id)s) is dead: no beat for %(silent).1f s",
        "Its work goes to others.",
    ),
    LogEvent(
        "work_unplaced",
        "WARNING",
        "%(count)d without a node: %(reason)s (%(works)s)",
        "No living node has the code or the labels for it, or none has room.",
    ),
    LogEvent("plan_made", "INFO", "plan of epoch %(epoch)d: %(summary)s"),
    LogEvent("report_refused", "WARNING", "the report of node %(node)s is no JSON: %(error)s"),
    LogEvent("leaving_delayed", "DEBUG", "the end of node %(node)s is not written: %(error)s"),
    LogEvent(
        "event_loop_blocked",
        "WARNING",
        "the event loop has been blocked for %(seconds).1f s, here:\n%(stack)s",
        "Code that blocks belongs in a thread; see howto/blocking-code.",
    ),
    LogEvent(
        "process_frozen",
        "WARNING",
        "the event loop has been blocked for %(seconds).1f s and with it every thread: frozen, or in"
        " C code that holds the GIL, here:\n%(stack)s",
        "The machine was suspended or overcommitted, or an extension module holds the GIL.",
    ),
    LogEvent("work_withdrawn", "INFO", "work %(work)s (epoch %(epoch)d) was withdrawn"),
    LogEvent("owner_unknown", "DEBUG", "the owner of %(work)s is not known: %(error)s"),
    LogEvent(
        "work_lost",
        "ERROR",
        "work %(work)s is lost: held under epoch %(epoch)d, %(reason)s",
        "Somebody took it while this node held it. Nothing is processed twice: its writes are refused.",
    ),
    LogEvent("loss_not_recorded", "WARNING", "the loss of %(work)s is not written down: %(error)s"),
    LogEvent(
        "side_process_unkept",
        "ERROR",
        "the thread that keeps the side process ended",
        "A fault; please report it. The node is evicted when its lease ends.",
    ),
    LogEvent(
        "side_process_silent",
        "WARNING",
        "the side process has said nothing for %(seconds).0f s: it is ended",
        "A new one is started at once.",
    ),
    LogEvent("side_process_said", "WARNING", "side process: %(line)s"),
    LogEvent("pulse_stop_failed", "ERROR", "the pulse of node %(node)s did not stop well"),
    LogEvent("news_too_late", "DEBUG", "news after the end of the app's event loop: %(news)s"),
    LogEvent("news_refused", "ERROR", "news %(news)s was not taken in", "A listener failed."),
    LogEvent("work_adopted", "INFO", "work %(work)s is this node's under epoch %(epoch)d: adopted"),
    LogEvent("work_claimed", "INFO", "claimed %(works)s", fields=("count",)),
    LogEvent(
        "work_stuck", "WARNING", "work %(work)s gets nowhere: it is stopped and started again"
    ),
    LogEvent(
        "work_failed", "WARNING", "work %(work)s ended by itself: %(error)r", fields=("failures",)
    ),
    LogEvent(
        "failure_not_recorded", "WARNING", "the failure of %(work)s is not written down: %(error)r"
    ),
    LogEvent(
        "work_avoided",
        "ERROR",
        "work %(work)s failed here %(failures)d times in a row: left to other nodes for"
        " %(seconds).0f s",
    ),
    LogEvent(
        "work_abandoned",
        "WARNING",
        "work %(work)s had not ended in time: abandoned",
        "It is ended with the process; what it still writes is refused.",
    ),
    LogEvent("release_delayed", "WARNING", "%(works)s not released yet: %(error)r"),
    LogEvent("work_released", "INFO", "released %(works)s", fields=("count",)),
    LogEvent(
        "rest_not_ended",
        "WARNING",
        "work goes on only in %(seconds).0f s, when its rest is over: %(error)s",
    ),
    LogEvent("stopping", "INFO", "stopping (%(reason)s), in at most %(seconds).1f s"),
    LogEvent(
        "stopped",
        "INFO",
        "stopped: %(summary)s",
        "A warning unless the result is `clean`.",
        ("result", "seconds"),
    ),
    LogEvent(
        "shutdown_report",
        "INFO",
        "shutdown report: %(report)s",
        "JSON; `strandline nodes show` shows it too.",
    ),
    LogEvent("step_done", "INFO", "step %(step)s: ok after %(seconds).2f s"),
    LogEvent(
        "step_failed",
        "WARNING",
        "step %(step)s: %(status)s, %(reason)s",
        "The steps after it ran all the same.",
        ("seconds",),
    ),
    LogEvent("second_signal", "WARNING", "second signal: %(seconds).1f s are left"),
)
