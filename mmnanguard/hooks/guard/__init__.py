"""NanGuardHook: report what the guards did, and halt when they must.

Reading order:

1. ``nan_guard_hook``: the hook.
2. ``run_scalars``: counters for the log and for dashboards, and averages
   without non-finite values; ``changed_scalars``: lines that show counters
   when they change.
3. ``recent_samples``: the sample names of the last iterations;
   ``bad_samples``: those that are known to be bad; ``event_ids``: the ids of
   events.
4. ``ema_freeze``: averages that ignore rejected updates;
   ``schedule_freeze``: schedules that do.
5. ``guard_checkpoint``: guards and random states in checkpoints, for an exact
   resume.
6. ``loss_parts``: losses that are not finite: which parts, how often.
7. ``scale_replay``: the loss scale, corrected by a replay.
8. ``start_warnings``: optimizers without a guard, and keys that nothing reads;
   ``check_listeners``: misspelt listener methods of other hooks;
   ``bypasses``: the rows of warnings that updates are not guarded.
9. ``start_checks``: refuse runs that cannot work; ``check_rollback``: guards
   that cannot roll back; ``check_engine``: guards that pass an engine by.
"""
